//! The operator's routes, on a listener of their own: `GET /admin/plugins` and `POST /admin/plugins/{slot}/{action}`,
//! `GET /admin/plugin-files`, `POST /admin/snapshot` and `POST /admin/sync/verify`; those of [`super::agents`].
//!
//! Every request carries the token of `admin.token` as `Authorization: Bearer …`. A slot's name may hold a slash, as it is
//! or as `%2F`: `/admin/plugins/agent/bob/reload`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tenon_runtime::journal::JournalConfig;
use tenon_runtime::{ControlError, Host, Transition};

use super::error::{ApiError, Result};
use super::request::{read_body, shown, utf8};
use super::snapshots::SnapshotJson;
use crate::agent::Agents;
use crate::chain::Time;
use crate::maintenance::audit::Auditor;
use crate::maintenance::shelf::{MakeError, Shelf};
use crate::snapshot::SnapshotError;

/// Bytes of a plugin's configuration at most.
pub(super) const BODY_MAX: usize = 1 << 20;

/// What the operator's routes work with.
pub struct AdminParts {
    /// The plugins.
    pub host: Host,
    /// The snapshots.
    pub shelf: Shelf,
    /// Who verifies the state.
    pub auditor: Auditor,
    /// The agents.
    pub agents: Agents,
    /// What callers have to show.
    pub token: String,
}

#[derive(Clone)]
struct Admin(Arc<Shared>);

struct Shared {
    host: Host,
    shelf: Shelf,
    auditor: Auditor,
    /// Compared in place of the token: how long the comparison takes then says nothing about the token.
    token: [u8; 32],
}

pub(super) fn router(parts: AdminParts) -> Router {
    let token = Sha256::digest(parts.token.trim()).into();
    let admin = Admin(Arc::new(Shared { host: parts.host, shelf: parts.shelf, auditor: parts.auditor, token }));
    super::agents::routes(parts.agents)
        .route("/admin/plugins", get(list))
        .route("/admin/plugins/", get(list))
        .route("/admin/plugin-files", get(files))
        .route("/admin/plugins/{*order}", post(order).get(question))
        .route("/admin/snapshot", post(snapshot))
        .route("/admin/sync/verify", post(verify))
        .method_not_allowed_fallback(super::method_not_allowed)
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(admin.clone(), authorise))
        .with_state(admin)
}

async fn not_found() -> ApiError {
    ApiError::not_found(
        "not found; there are `GET /admin/plugins`, `GET /admin/plugin-files`, \
         `GET /admin/plugins/{slot}/{history,shadow,journal}` and \
         `POST /admin/plugins/{slot}/{reload,use,config,promote,rollback,journal}`, `GET /admin/agents`, \
         `GET /admin/agents/{name}/parked` and `POST /admin/agents/{name}/retry`, `POST /admin/snapshot` and \
         `POST /admin/sync/verify`",
    )
}

async fn authorise(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    // An empty token, of a file that was never written, opens nothing.
    let right =
        shown.is_some_and(|token| !token.is_empty() && <[u8; 32]>::from(Sha256::digest(token)) == admin.0.token);
    if right {
        return next.run(request).await;
    }
    let text = "the operator's routes need `Authorization: Bearer` and the token of the node's admin.token";
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorised", text).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

async fn list(State(admin): State<Admin>) -> Response {
    Json(admin.0.host.status()).into_response()
}

/// Every file of the plugin directory, with why it is refused or which other one serves in its place.
async fn files(State(admin): State<Admin>) -> Response {
    Json(admin.0.host.plugins()).into_response()
}

/// A step of a generation, and when it was taken, in RFC 3339 and UTC.
#[derive(Serialize)]
struct Step {
    #[serde(flatten)]
    step: Transition,
    at: String,
}

impl Step {
    fn of(step: Transition) -> Self {
        let at = format!("{}Z", Time(step.at_ms.saturating_mul(1_000)));
        Self { step, at }
    }
}

/// The slot and the last word of a path.
fn split(path: Result<Path<String>, PathRejection>, words: &str) -> Result<(String, String)> {
    let Path(path) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    let path = path.trim_end_matches('/');
    let (slot, word) = path.rsplit_once('/').unwrap_or(("", path));
    if slot.is_empty() {
        return Err(ApiError::not_found(format!("the path is /admin/plugins/{{slot}}/{{{words}}}")));
    }
    Ok((slot.to_owned(), word.to_owned()))
}

const ORDERS: &str = "reload,use,config,promote,rollback,journal";
const QUESTIONS: &str = "history,shadow,journal";

async fn question(State(admin): State<Admin>, path: Result<Path<String>, PathRejection>) -> Result<Response> {
    let (slot, question) = split(path, QUESTIONS)?;
    let host = &admin.0.host;
    match question.as_str() {
        "history" => {
            let steps: Vec<Step> = host.history(&slot)?.into_iter().map(Step::of).collect();
            Ok(Json(steps).into_response())
        }
        "journal" => Ok(Json(host.journal(&slot)?).into_response()),
        "shadow" => Ok(Json(host.shadow(&slot)?).into_response()),
        word if ORDERS.split(',').any(|order| order == word) => Err(super::method_not_allowed().await),
        other => {
            let text = format!("unknown question `{}`; known are {QUESTIONS}", shown(other));
            Err(ApiError::not_found(text))
        }
    }
}

/// What to do with a slot.
enum Order {
    Promote {
        force: bool,
    },
    RollBack,
    Reload,
    Use(Option<String>),
    Configure(Value),
    /// With these fields of a slot's `journal`, all others as last time. None: no more.
    Record(Option<Map<String, Value>>),
}

async fn order(
    State(admin): State<Admin>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let (slot, action) = split(path, ORDERS)?;
    let body = read_body(&headers, body, BODY_MAX).await?;
    let order = match action.as_str() {
        "promote" => Order::Promote { force: force(&body)? },
        "rollback" => Order::RollBack,
        "reload" => Order::Reload,
        "use" => Order::Use(plugin(&body)?),
        "config" => Order::Configure(configuration(&body)?),
        "journal" => Order::Record(recording(&body)?),
        other => {
            let text = format!("unknown action `{}`; known are {ORDERS}", shown(other));
            return Err(ApiError::not_found(text));
        }
    };
    // Loading compiles, which takes a while.
    let done = tokio::task::spawn_blocking(move || {
        let host = &admin.0.host;
        let status = match order {
            Order::Promote { force } => host.promote(&slot, force),
            Order::RollBack => host.roll_back(&slot),
            Order::Reload => host.reload(&slot),
            Order::Use(plugin) => host.use_plugin(&slot, plugin.as_deref()),
            Order::Configure(settings) => host.configure(&slot, settings),
            Order::Record(Some(fields)) => {
                let last = host.journal(&slot)?.map(|journal| journal.config).unwrap_or_default();
                return Ok(Json(host.record(&slot, Some(journal_config(last, fields)?))?).into_response());
            }
            Order::Record(None) => return Ok(Json(host.stop_recording(&slot)?).into_response()),
        };
        Ok(Json(status?).into_response())
    });
    done.await.map_err(ApiError::internal)?
}

/// The body as a JSON object.
pub(super) fn object(body: &Bytes) -> Result<Map<String, Value>> {
    let text = utf8(body)?;
    serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("the body is not a JSON object: {error}")))
}

/// Nothing, or `{"force": true}`.
fn force(body: &Bytes) -> Result<bool> {
    if body.is_empty() {
        return Ok(false);
    }
    let mut fields = object(body)?;
    let force = fields.remove("force").unwrap_or(Value::Bool(false));
    if let Some(name) = fields.keys().next() {
        return Err(ApiError::invalid(format!("unknown field `{}`", shown(name))));
    }
    force.as_bool().ok_or_else(|| ApiError::field("force", "expected true or false"))
}

/// `{"plugin": "name"}`, or null for the built-in.
fn plugin(body: &Bytes) -> Result<Option<String>> {
    let mut fields = object(body)?;
    let plugin = fields.remove("plugin").ok_or_else(|| ApiError::field("plugin", "is missing"))?;
    if let Some(name) = fields.keys().next() {
        return Err(ApiError::invalid(format!("unknown field `{}`", shown(name))));
    }
    match plugin {
        Value::Null => Ok(None),
        Value::String(name) => Ok(Some(name)),
        other => {
            let text = format!("expected a plugin's name, or null for the built-in, got {}", shown(&other.to_string()));
            Err(ApiError::field("plugin", text))
        }
    }
}

fn configuration(body: &Bytes) -> Result<Value> {
    object(body).map(Value::Object)
}

/// `{"recording": true}`, with any of the fields of a slot's `journal`; or `{"recording": false}`.
fn recording(body: &Bytes) -> Result<Option<Map<String, Value>>> {
    let mut fields = object(body)?;
    let recording = fields.remove("recording").ok_or_else(|| ApiError::field("recording", "is missing"))?;
    let recording = recording.as_bool().ok_or_else(|| ApiError::field("recording", "expected true or false"))?;
    match fields.keys().next() {
        Some(name) if !recording => {
            Err(ApiError::invalid(format!("`{}` says nothing where nothing is recorded", shown(name))))
        }
        _ => Ok(recording.then_some(fields)),
    }
}

/// `last` with other values for `fields`.
fn journal_config(last: JournalConfig, fields: Map<String, Value>) -> Result<JournalConfig> {
    let Value::Object(mut all) = serde_json::to_value(last).expect("plain data") else { unreachable!("a struct") };
    all.extend(fields);
    serde_json::from_value(Value::Object(all)).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Makes a snapshot of the head, or of the block that `{"height": …}` names, and answers when it is there.
async fn snapshot(State(admin): State<Admin>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read_body(&headers, body, BODY_MAX).await?;
    let height = if body.is_empty() {
        None
    } else {
        let mut fields = object(&body)?;
        let height = fields.remove("height").unwrap_or(Value::Null);
        if let Some(name) = fields.keys().next() {
            return Err(ApiError::invalid(format!("unknown field `{}`", shown(name))));
        }
        if !height.is_null() && height.as_u64().is_none() {
            return Err(ApiError::field("height", "expected a whole number that is not negative"));
        }
        height.as_u64()
    };
    let made = admin.0.shelf.make(height).await?;
    Ok(Json(SnapshotJson::of(&made)).into_response())
}

/// Reads all accounts, and answers whether they make the head's state root.
async fn verify(State(admin): State<Admin>) -> Result<Response> {
    Ok(Json(admin.0.auditor.verify().await?).into_response())
}

impl From<MakeError> for ApiError {
    fn from(error: MakeError) -> Self {
        let text = error.to_string();
        match error {
            MakeError::Busy => Self::new(StatusCode::CONFLICT, "not-now", text),
            MakeError::Snapshot(SnapshotError::NotHere(_)) => Self::new(StatusCode::NOT_FOUND, "not-found", text),
            MakeError::Snapshot(SnapshotError::Stopped) => Self::unavailable("stopping", text),
            // The operator is the one to know.
            MakeError::Snapshot(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "not-made", text),
        }
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let (status, code) = match &error {
            ControlError::UnknownSlot { .. } => (StatusCode::NOT_FOUND, "unknown-slot"),
            ControlError::UnknownPlugin { .. } => (StatusCode::NOT_FOUND, "unknown-plugin"),
            ControlError::Builtin { .. } => (StatusCode::CONFLICT, "builtin"),
            ControlError::BuiltinConfig { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "rejected"),
            ControlError::Journal { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "rejected"),
            ControlError::Rejected(_) => (StatusCode::UNPROCESSABLE_ENTITY, "rejected"),
            ControlError::NotNow { .. } => (StatusCode::CONFLICT, "not-now"),
            ControlError::Stopped => return Self::unavailable("stopping", error.to_string()),
        };
        Self::new(status, code, error.to_string())
    }
}
