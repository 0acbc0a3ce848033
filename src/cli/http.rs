//! A small HTTP client: one node, JSON both ways, errors that say what to do.

use std::fmt::Display;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use url::Url;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A node, reached over HTTP. Cheap to clone; connections are kept.
#[derive(Clone)]
pub struct Node {
    base: Url,
    client: reqwest::Client,
    token: Option<String>,
    /// What says which node it is.
    named_by: &'static str,
}

/// Why there is no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no node answers at {url}: {cause}; is it running? {named_by} names another")]
    Unreachable {
        /// Where.
        url: String,
        /// What the connection says.
        cause: String,
        /// What says which node it is.
        named_by: &'static str,
    },
    /// The node says no.
    #[error("{detail}{}", match .retry_after { Some(after) => format!("; try again in {after} s"), None => String::new() })]
    Refused {
        /// How.
        status: StatusCode,
        /// In its words.
        detail: String,
        /// When to ask again, in seconds.
        retry_after: Option<u64>,
        /// With which cursor a list goes on, where a reorg took the block of the one that was given.
        next: Option<String>,
    },
    /// Not what a node answers.
    #[error("{url} is no Tenon node: {cause}")]
    Malformed {
        /// Where.
        url: String,
        /// What is wrong.
        cause: String,
    },
    /// Not an address to ask.
    #[error("`{url}` is no address of a node: {cause}; expected something like http://127.0.0.1:8006")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong.
        cause: String,
    },
}

type Result<T, E = ClientError> = std::result::Result<T, E>;

impl Node {
    /// The node at `base`. Errors: not an http URL.
    pub fn new(base: &str) -> Result<Self> {
        let wrong = |cause: &dyn Display| ClientError::Address { url: base.to_owned(), cause: cause.to_string() };
        let url = Url::parse(base).map_err(|cause| wrong(&cause))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong(&"not http or https"));
        }
        // Another part of the process may have chosen the same one before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(|cause| wrong(&cause))?;
        Ok(Self { base: url, client, token: None, named_by: "`--node URL` or NODE_URL" })
    }

    /// The same node, asked with a bearer token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.trim().to_owned());
        self
    }

    /// The same node, which the user has named by these options.
    pub fn named_by(self, named_by: &'static str) -> Self {
        Self { named_by, ..self }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// `GET path`, as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(self.send(Method::GET, path, None).await?).await
    }

    /// `GET path`, as JSON; nothing where the node answers 404.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// `GET path`, as text.
    pub async fn text(&self, path: &str) -> Result<String> {
        self.send(Method::GET, path, None).await?.text().await.map_err(|error| self.failed(&error))
    }

    /// `GET path`, as bytes of the media type `accept`; answers the value of `header` with them.
    pub async fn bytes(&self, path: &str, accept: &str, header: &str) -> Result<(Vec<u8>, Option<String>)> {
        let request = self.request(Method::GET, path).header(ACCEPT, accept);
        let response = self.checked(request.send().await.map_err(|error| self.failed(&error))?).await?;
        let header = response.headers().get(header).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = response.bytes().await.map_err(|error| self.failed(&error))?;
        Ok((bytes.to_vec(), header))
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.post_text(path, body.to_string()).await
    }

    /// Posts JSON text as it is; answers JSON.
    pub async fn post_text(&self, path: &str, body: String) -> Result<Value> {
        self.json(self.send(Method::POST, path, Some(body)).await?).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url()));
        match &self.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Response> {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.header(CONTENT_TYPE, "application/json").body(body),
            None => request,
        };
        self.checked(request.send().await.map_err(|error| self.failed(&error))?).await
    }

    /// The response, if it is one of success; else what it says is wrong.
    async fn checked(&self, response: Response) -> Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let url = response.url().path().to_owned();
        let body = response.text().await.unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let text = |name: &str| Some(body.get(name)?.as_str()?.to_owned());
        let detail = match text("detail").unwrap_or_else(|| format!("{url}: {status}")) {
            // What the public listener says of every path that it does not have.
            detail if status == StatusCode::NOT_FOUND && url.starts_with("/admin/") && detail.contains("`/` lists") => {
                format!(
                    "{} is no admin API, but the listener for everyone; `admin.listen` is the other one",
                    self.url()
                )
            }
            detail => detail,
        };
        Err(ClientError::Refused { status, detail, retry_after, next: text("next") })
    }

    async fn json(&self, response: Response) -> Result<Value> {
        let text = response.text().await.map_err(|error| self.failed(&error))?;
        serde_json::from_str(&text)
            .map_err(|error| ClientError::Malformed { url: self.url().to_owned(), cause: error.to_string() })
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        // The innermost cause is the one that says "connection refused".
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        ClientError::Unreachable { url: self.url().to_owned(), cause: cause.to_string(), named_by: self.named_by }
    }
}
