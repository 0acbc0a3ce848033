//! The operator's routes to agents: `GET /admin/agents` says how each stands, `GET /admin/agents/{name}/parked` what it has
//! set aside, `POST /admin/agents/{name}/retry` hands that to its handler again. Who may ask is decided in [`super::admin`].

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::Value;

use super::admin::{BODY_MAX, object};
use super::error::{ApiError, Result};
use super::request::{Params, read_body, shown};
use crate::agent::{AgentStatus, Agents, Parked};

/// Events on a page, where the caller does not say.
const DEFAULT: usize = 100;
/// Events on a page at most.
const LIST_MAX: usize = 1_000;

#[derive(Serialize)]
struct ParkedJson {
    events: Vec<Parked>,
    count: usize,
    /// What to ask for with `after` next time; null where nothing follows.
    next: Option<i64>,
}

#[derive(Serialize)]
struct RetryJson {
    agent: String,
    /// How many events are handled with the next block.
    retried: usize,
}

/// The routes, for a router that has a state of its own.
pub(super) fn routes<S>(agents: Agents) -> Router<S> {
    Router::new()
        .route("/admin/agents", get(list))
        .route("/admin/agents/", get(list))
        .route("/admin/agents/{name}/parked", get(parked))
        .route("/admin/agents/{name}/retry", post(retry))
        .with_state(agents)
}

async fn list(State(agents): State<Agents>, params: Params) -> Result<Json<Vec<AgentStatus>>> {
    params.only(&[], agents.chain_id())?;
    Ok(Json(agents.statuses().await?))
}

/// A page of what an agent has set aside, oldest first.
async fn parked(
    State(agents): State<Agents>,
    path: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Json<ParkedJson>> {
    let name = named(path)?;
    let params = params.only(&["after", "limit"], agents.chain_id())?;
    let after = params.number("after")?.unwrap_or(0);
    // Ids are positive 64-bit integers: nothing comes after the largest.
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let limit = params.limit(DEFAULT, LIST_MAX)?;
    // One more says whether there are more.
    let events = agents.parked(&name, after, limit + 1).await?;
    let mut events = events.ok_or_else(|| unknown(&agents, &name))?;
    let is_all = events.len() <= limit;
    events.truncate(limit);
    let next = events.last().filter(|_| !is_all).map(|last| last.id);
    Ok(Json(ParkedJson { count: events.len(), events, next }))
}

/// Lets the handler try again: with `{"id": …}` that event, with nothing all of them.
async fn retry(
    State(agents): State<Agents>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RetryJson>> {
    let name = named(path)?;
    let body = read_body(&headers, body, BODY_MAX).await?;
    let only = if body.is_empty() { None } else { id(object(&body)?)? };
    let retried = agents.retry(&name, only).await?.ok_or_else(|| unknown(&agents, &name))?;
    match only {
        Some(id) if retried == 0 => {
            let text = format!("agent `{name}` has set aside no event with the id {id}");
            Err(ApiError::new(StatusCode::NOT_FOUND, "unknown-event", text))
        }
        _ => Ok(Json(RetryJson { agent: name, retried })),
    }
}

fn named(path: Result<Path<String>, PathRejection>) -> Result<String> {
    path.map(|Path(name)| name).map_err(|error| ApiError::invalid(error.body_text()))
}

/// What `{"id": …}` says; none where it is null or absent.
fn id(mut fields: serde_json::Map<String, Value>) -> Result<Option<i64>> {
    let id = fields.remove("id").unwrap_or(Value::Null);
    if let Some(name) = fields.keys().next() {
        return Err(ApiError::invalid(format!("unknown field `{}`", shown(name))));
    }
    if id.is_null() {
        return Ok(None);
    }
    let wrong = || ApiError::field("id", format!("expected the id of an event, got {}", shown(&id.to_string())));
    id.as_i64().ok_or_else(wrong).map(Some)
}

fn unknown(agents: &Agents, name: &str) -> ApiError {
    let known = agents.names().collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "this node has none".to_owned() } else { format!("known: {known}") };
    ApiError::new(StatusCode::NOT_FOUND, "unknown-agent", format!("there is no agent `{}`; {known}", shown(name)))
}
