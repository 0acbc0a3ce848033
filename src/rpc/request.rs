//! Reading requests: query parameters by name, bodies up to a size and within a time. Everything refused is named.

use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;

use super::error::{ApiError, Result};

/// How long a caller may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The query parameters of a request, as text.
#[derive(Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        if parts.uri.query().is_none_or(str::is_empty) {
            return Ok(Self::default());
        }
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(Self(pairs))
    }
}

impl Params {
    /// Refuses names that are neither in `known` nor `chain_id` (which must be ours), and names that come twice: a
    /// parameter that nobody reads would silently ask for something else.
    pub fn only(self, known: &[&str], chain_id: &str) -> Result<Self> {
        for (at, (name, value)) in self.0.iter().enumerate() {
            if self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(ApiError::field(&shown(name), "comes twice"));
            }
            if name == "chain_id" {
                check_chain(value, chain_id)?;
            } else if !known.contains(&name.as_str()) {
                let known = known.iter().fold("`chain_id`".to_owned(), |list, name| format!("{list}, `{name}`"));
                return Err(ApiError::invalid(format!("unknown parameter `{}`; known are {known}", shown(name))));
            }
        }
        Ok(self)
    }

    /// The value of `name`, read as a `T`; none where it is absent or empty.
    pub fn optional<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<Option<T>> {
        self.text(name).map(|text| text.parse().map_err(|error| ApiError::field(name, error))).transpose()
    }

    /// The value of `name`, which must be there.
    pub fn required<T: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T> {
        self.optional(name)?.ok_or_else(|| ApiError::field(name, "is missing"))
    }

    /// A whole number that is not negative; none where it is absent.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        self.text(name).map(|text| whole_number(text).map_err(|reason| ApiError::field(name, reason))).transpose()
    }

    /// `true` or `false`; `default` where it is absent.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.text(name) {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(ApiError::field(name, format!("expected true or false, got `{}`", shown(other)))),
        }
    }

    /// How many items a list may have: 1 to `max`.
    pub fn limit(&self, default: usize, max: usize) -> Result<usize> {
        let Some(limit) = self.number("limit")? else { return Ok(default) };
        usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=max).contains(limit))
            .ok_or_else(|| ApiError::field("limit", format!("expected 1 to {max}, got {limit}")))
    }

    /// The value of `name` where it is there and not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }
}

/// Whether `got` is the chain of this node.
pub fn check_chain(got: &str, expected: &str) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(ApiError::field("chain_id", format!("this node is on `{expected}`, got `{}`", shown(got))))
}

/// A whole number in decimal, 0 to 2^64 - 1.
pub fn whole_number(text: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("expected a whole number that is not negative, got `{}`", shown(text)));
    }
    text.parse().map_err(|_| format!("{} is above the largest value, {}", shown(text), u64::MAX))
}

/// `text`, cut to what a message can bear.
pub fn shown(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

/// Bytes of a refused body that are read and thrown away. Whoever is still sending when the connection closes may never
/// see the answer.
const DISCARD_MAX: usize = 64 << 20;
/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// Lets the caller finish sending a body that nobody wants, so that it sees why.
pub async fn discard(headers: &HeaderMap, body: Body) {
    // Whoever waits for leave to send just does not get it.
    if headers.contains_key(header::EXPECT) || body.is_end_stream() {
        return;
    }
    let mut stream = body.into_data_stream();
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            bytes += chunk.len();
            if bytes > DISCARD_MAX {
                break;
            }
        }
    };
    // However it ends, the answer is sent next.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
}

/// Reads a body of at most `max` bytes. Errors: larger, cut off, or not here within 30 seconds.
pub async fn read_body(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes> {
    let too_large = || {
        let text = format!("the body is larger than the {max} bytes that are allowed");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        discard(headers, body).await;
        return Err(too_large());
    }
    let mut stream = body.into_data_stream();
    let read = async {
        // An announcement costs its sender nothing, so it buys little.
        let room = announced.unwrap_or(0).min(64 << 10);
        let mut bytes = Vec::with_capacity(usize::try_from(room).expect("64 KiB"));
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ApiError::invalid(format!("the body could not be read: {error}")))?;
            if bytes.len() + chunk.len() > max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Bytes::from(bytes))
    };
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took longer than 30 seconds");
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or_else(|_| Err(late()));
    if read.as_ref().is_err_and(|error| error.status == StatusCode::PAYLOAD_TOO_LARGE) {
        discard(&HeaderMap::new(), Body::from_stream(stream)).await;
    }
    read
}

/// A body as text.
pub fn utf8(body: &[u8]) -> Result<&str> {
    std::str::from_utf8(body).map_err(|error| ApiError::invalid(format!("the body is not UTF-8: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params(query: &str) -> Result<Params> {
        let uri: axum::http::Uri = format!("/x?{query}").parse().unwrap();
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(&uri).map_err(|error| ApiError::invalid(error.to_string()))?;
        Params(pairs).only(&["start", "limit", "flag"], "c")
    }

    #[test]
    fn what_is_wrong_with_a_parameter_is_said_with_its_name() {
        for (query, name) in [
            ("start=-1", "start"),
            ("start=1.5", "start"),
            ("start=1e3", "start"),
            ("start=%2B1", "start"),
            ("start=18446744073709551616", "start"),
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("flag=maybe", "flag"),
            ("begin=1", "begin"),
            ("start=1&start=2", "start"),
            ("chain_id=d", "chain_id"),
        ] {
            let error = params(query)
                .and_then(|params| Ok((params.number("start")?, params.limit(10, 100)?, params.flag("flag", true)?)))
                .unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert!(error.detail.contains(&format!("`{name}`")), "{query}: {}", error.detail);
        }
        let good = params("start=18446744073709551615&limit=100&flag=0&chain_id=c").unwrap();
        assert_eq!(good.number("start"), Ok(Some(u64::MAX)));
        assert_eq!((good.limit(10, 100), good.flag("flag", true)), (Ok(100), Ok(false)));
        assert_eq!(params("").unwrap().limit(10, 100), Ok(10));
    }

    proptest! {
        #[test]
        fn numbers_are_read_as_rust_reads_them_or_not_at_all(number: u64, text in ".{0,24}") {
            prop_assert_eq!(whole_number(&number.to_string()), Ok(number));
            if let Ok(read) = whole_number(&text) {
                prop_assert_eq!(text.parse(), Ok(read));
            }
        }

        #[test]
        fn no_query_panics(query in "[a-z%0-9&=+_.-]{0,60}") {
            if format!("/x?{query}").parse::<axum::http::Uri>().is_ok() {
                let _ = params(&query).map(|params| (params.number("start"), params.limit(1, 2), params.flag("flag", true)));
            }
        }
    }
}
