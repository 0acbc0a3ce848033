//! From what went wrong inside to what a caller is told: a status, a stable code and a text. Causes that are ours alone
//! (a database that fails) go to the log and not to the caller.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::chain::{BlockError, SubmissionError};
use crate::ledger::ImportError;
use crate::mempool::SubmitError;
use crate::storage::StorageError;

/// An answer that is an error: `{"detail": "…", "code": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A word for programs; stable.
    pub code: &'static str,
    /// A sentence for people; names the field where one is wrong.
    pub detail: String,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u64>,
}

/// What a handler gives.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

#[derive(Serialize)]
struct Body<'a> {
    detail: &'a str,
    code: &'a str,
}

impl ApiError {
    /// An error with a status and a code of its own.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after_s: None }
    }

    /// 400: a parameter or body that cannot be used.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", detail)
    }

    /// 400 that names the parameter or field.
    pub fn field(field: &str, reason: impl std::fmt::Display) -> Self {
        Self::invalid(format!("field `{field}`: {reason}"))
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// 500 for a fault of ours; `cause` goes to the log.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request could not be answered");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error")
    }

    /// 503 while something is full or stopping; worth trying again after a second.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self { retry_after_s: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(Body { detail: &self.detail, code: self.code });
        let mut response = (self.status, body).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        Self::internal(error)
    }
}

impl From<BlockError> for ApiError {
    fn from(error: BlockError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-block", error.to_string())
    }
}

impl From<SubmissionError> for ApiError {
    fn from(error: SubmissionError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        let text = error.to_string();
        match error {
            ImportError::Invalid(error) => error.into(),
            ImportError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "conflict", text),
            ImportError::Gap { .. } => Self::new(StatusCode::BAD_REQUEST, "gap", text),
            ImportError::Storage(cause) => Self::internal(cause),
            ImportError::Stopped => Self::unavailable("stopping", text),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let text = error.to_string();
        let refused = |code| Self::new(StatusCode::BAD_REQUEST, code, text.clone());
        match error {
            SubmitError::Invalid(_) => refused("invalid"),
            SubmitError::WrongChain { .. } => refused("wrong-chain"),
            SubmitError::Signature(_) => refused("signature"),
            SubmitError::Payload { .. } => refused("invalid"),
            SubmitError::Transaction(_) => refused("refused"),
            SubmitError::Confirmed { .. } => refused("confirmed"),
            SubmitError::NonceTaken { .. } => refused("nonce-taken"),
            SubmitError::SenderFull { .. } => Self::unavailable("sender-full", text),
            SubmitError::Full { .. } => Self::unavailable("mempool-full", text),
            SubmitError::Storage(cause) => Self::internal(cause),
        }
    }
}
