//! The layer around every handler: it asks the policy, counts, and turns a panic into an answer.
//!
//! What a request costs stands in the route table: `base`, and one unit more for every `per_unit` blocks or items that
//! it asks for, so that a range of 1,000 blocks counts for what it is. A request whose numbers cannot be read costs the
//! base; its handler refuses it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::{Counter, Histogram, counter, histogram};
use tower::{Layer, Service};

use super::error::ApiError;
use super::request::{discard, whole_number};
use crate::chain::Time;
use crate::ledger::Ledger;
use crate::rate_limit::{self, Caller, Callers, Class, Denial, Networks, Policy, Trust, Verdict};
use crate::telemetry;

/// What a route costs: `base + asked / per_unit` units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Units of every request.
    pub base: u64,
    /// What else is counted.
    pub asked: Asked,
    /// Blocks or items for one unit.
    pub per_unit: u64,
}

/// What a request asks for, beside the route itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing that counts.
    Nothing,
    /// `end - start + 1` blocks.
    Blocks,
    /// `limit` items.
    Items,
}

impl Cost {
    /// The same for every request.
    pub const fn fixed(base: u64) -> Self {
        Self { base, asked: Asked::Nothing, per_unit: 1 }
    }

    /// What `uri` costs.
    fn of(&self, uri: &Uri) -> u64 {
        let number = |name: &str| {
            let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
            whole_number(pairs.into_iter().find(|(known, _)| *known == name)?.1).ok()
        };
        let asked = match self.asked {
            Asked::Nothing => return self.base,
            Asked::Blocks => {
                number("end").map(|end| end.saturating_sub(number("start").unwrap_or(0)).saturating_add(1))
            }
            Asked::Items => number("limit"),
        };
        self.base.saturating_add(asked.unwrap_or(0) / self.per_unit)
    }
}

/// What all guards share.
pub struct Limiter {
    policy: Arc<dyn Policy>,
    callers: Callers,
    ledger: Ledger,
}

impl Limiter {
    /// Asks `policy`; callers are told apart by `networks`.
    pub fn new(policy: Arc<dyn Policy>, networks: Networks, ledger: Ledger) -> Self {
        Self { policy, callers: Callers::new(networks), ledger }
    }

    /// Who is at `address`.
    pub fn caller(&self, address: IpAddr) -> Caller {
        self.callers.at(address)
    }

    /// For whom a proxy speaks: the last address that it did not make up itself. A proxy that names nobody is a caller
    /// like any other, without trust.
    fn behind(&self, proxy: Caller, headers: &HeaderMap) -> Caller {
        let lists = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let named: Vec<_> = lists.flat_map(|list| list.split(',')).map(str::trim).collect();
        for text in named.into_iter().rev() {
            let Ok(address) = text.parse() else { break };
            let caller = self.caller(address);
            if !caller.proxy {
                return caller;
            }
        }
        Caller { trust: Trust::Public, ..proxy }
    }

    /// The layer of one route.
    pub(super) fn guard(
        self: &Arc<Self>,
        number: usize,
        path: &'static str,
        class: Option<Class>,
        cost: Cost,
    ) -> GuardLayer {
        let answers = |status: &'static str| counter!(telemetry::RPC_REQUESTS, "route" => path, "status" => status);
        let name = class.map_or("none", class_name);
        let denied = |verdict: &'static str| counter!(telemetry::LIMITER_DENIED, "class" => name, "verdict" => verdict);
        GuardLayer(Arc::new(Guard {
            limiter: Arc::clone(self),
            number: u32::try_from(number).expect("the table is short"),
            class,
            cost,
            // Clients of a chain want to know where it is; scrapers and probes do not.
            says_height: path.starts_with("/rpc/"),
            answers: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(answers),
            seconds: histogram!(telemetry::RPC_SECONDS, "route" => path),
            denied: ["throttle", "forbidden", "too-expensive"].map(denied),
        }))
    }
}

struct Guard {
    limiter: Arc<Limiter>,
    number: u32,
    class: Option<Class>,
    cost: Cost,
    says_height: bool,
    answers: [Counter; 5],
    seconds: Histogram,
    denied: [Counter; 3],
}

/// What the policy's verdict comes to.
enum Word {
    /// Served, and nothing to say about it.
    Unlimited,
    /// Served, and told what is left.
    Limited { class: Class, limit: u64, remaining: u64, reset_ms: u64 },
    /// Answered like this.
    Refused(Box<Response>),
}

impl Guard {
    /// The policy's word on a request.
    fn check(&self, request: &Request) -> Word {
        let Some(class) = self.class else { return Word::Unlimited };
        let caller = request.extensions().get::<Caller>().copied();
        let mut caller = caller.expect("the server says of every connection who is at its other end");
        if caller.proxy {
            caller = self.limiter.behind(caller, request.headers());
        }
        let request = rate_limit::Request {
            client: caller.client,
            route: self.number,
            class,
            trust: caller.trust,
            cost: self.cost.of(request.uri()).max(1),
            now: Time::now().0,
        };
        let (verdict, record) = self.limiter.policy.check_recorded(&request);
        let refused = |error: ApiError| {
            let mut response = error.into_response();
            if let Some(record) = record.and_then(|record| HeaderValue::try_from(record).ok()) {
                response.headers_mut().insert(DECISION, record);
            }
            response
        };
        match verdict {
            // A limit of 0 is that of a policy that let it through unasked.
            Verdict::Allow { limit: 0 | u64::MAX, .. } | Verdict::Pass => Word::Unlimited,
            Verdict::Allow { limit, remaining, reset_ms } => Word::Limited { class, limit, remaining, reset_ms },
            Verdict::Throttle { limit, retry_after_ms } => {
                self.denied[0].increment(1);
                let seconds = retry_after_ms.div_ceil(1_000).max(1);
                let text = format!("too many requests of class `{}`; again in {seconds} s", class_name(class));
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "throttled", text);
                let mut response = refused(ApiError { retry_after_s: Some(seconds), ..error });
                say_limits(response.headers_mut(), class, limit, 0, retry_after_ms);
                Word::Refused(Box::new(response))
            }
            Verdict::Deny(Denial::Forbidden) => {
                self.denied[1].increment(1);
                let text = format!("requests of class `{}` are not for you", class_name(class));
                Word::Refused(Box::new(refused(ApiError::new(StatusCode::FORBIDDEN, "forbidden", text))))
            }
            Verdict::Deny(Denial::TooExpensive) => {
                self.denied[2].increment(1);
                let text =
                    format!("this request costs {} units, more than you can ever have; ask for less", request.cost);
                let error = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-expensive", text);
                Word::Refused(Box::new(refused(error)))
            }
        }
    }

    fn finish(&self, mut response: Response, started: Instant) -> Response {
        if self.says_height {
            let height = HeaderValue::from(self.limiter.ledger.height());
            response.headers_mut().insert(HEAD_HEIGHT, height);
        }
        let class = usize::from(response.status().as_u16() / 100).clamp(1, 5) - 1;
        self.answers[class].increment(1);
        self.seconds.record(started.elapsed());
        response
    }
}

/// Where a refusal stands in the journal, while the slot records.
const DECISION: HeaderName = HeaderName::from_static("x-tenon-decision");
const HEAD_HEIGHT: HeaderName = HeaderName::from_static("x-head-height");

/// The fields of draft-ietf-httpapi-ratelimit-headers: quota and what is left of it, in units of cost, named by class.
fn say_limits(headers: &mut HeaderMap, class: Class, limit: u64, remaining: u64, reset_ms: u64) {
    const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
    const LIMIT: HeaderName = HeaderName::from_static("ratelimit");
    let (name, seconds) = (class_name(class), reset_ms.div_ceil(1_000));
    let value = |text: String| HeaderValue::try_from(text).expect("ASCII");
    headers.insert(POLICY, value(format!("\"{name}\";q={limit}")));
    headers.insert(LIMIT, value(format!("\"{name}\";r={remaining};t={seconds}")));
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Sync => "sync",
        Class::Read => "read",
        Class::Write => "write",
        Class::Import => "import",
    }
}

/// Puts a guard around a route.
#[derive(Clone)]
pub(super) struct GuardLayer(Arc<Guard>);

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: Arc::clone(&self.0) }
    }
}

/// A route with its guard.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    guard: Arc<Guard>,
}

impl<S> Service<Request> for Guarded<S>
where
    S: Service<Request, Error = Infallible, Response: IntoResponse, Future: Send + 'static>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let started = Instant::now();
        let guard = Arc::clone(&self.guard);
        let word = guard.check(&request);
        if let Word::Refused(refusal) = word {
            let refusal = guard.finish(*refusal, started);
            let (parts, body) = request.into_parts();
            return Box::pin(async move {
                discard(&parts.headers, body).await;
                Ok(refusal)
            });
        }
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let mut response = match answer.await {
                Ok(Ok(answer)) => answer.into_response(),
                Ok(Err(never)) => match never {},
                Err(_) => ApiError::internal("a handler panicked").into_response(),
            };
            if let Word::Limited { class, limit, remaining, reset_ms } = word {
                say_limits(response.headers_mut(), class, limit, remaining, reset_ms);
            }
            Ok(guard.finish(response, started))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cost_grows_with_what_is_asked_for() {
        let range = Cost { base: 1, asked: Asked::Blocks, per_unit: 10 };
        for (query, cost) in [
            ("", 1),
            ("?start=5", 1),
            ("?start=5&end=5", 1),
            ("?start=1&end=9", 1),
            ("?start=1&end=10", 2),
            ("?end=999", 101),
            ("?end=18446744073709551615", 1 + u64::MAX / 10),
            ("?end=-1", 1),
            ("?start=9&end=2", 1),
        ] {
            assert_eq!(range.of(&format!("/rpc/blocks-range{query}").parse().unwrap()), cost, "{query}");
        }
        let list = Cost { base: 2, asked: Asked::Items, per_unit: 10 };
        assert_eq!(list.of(&"/rpc/messages?limit=100".parse().unwrap()), 12);
        assert_eq!(Cost::fixed(3).of(&"/x?limit=100&end=5".parse().unwrap()), 3);
    }

    /// Lets everybody through: there is nothing to decide in these tests.
    fn limiter(dir: &std::path::Path) -> Arc<Limiter> {
        struct Open;
        impl Policy for Open {
            fn check_recorded(&self, _: &rate_limit::Request) -> (Verdict, Option<String>) {
                (Verdict::Pass, None)
            }
        }
        let options = crate::ledger::LedgerOptions::new(dir.join("chain.db"), crate::sample::genesis(1, 1));
        let ledger = Ledger::open(options, Vec::new()).unwrap();
        Arc::new(Limiter::new(Arc::new(Open), Networks::default(), ledger))
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_for() {
        let dir = tempfile::tempdir().unwrap();
        let limiter = limiter(dir.path());
        async fn panics() {
            panic!("a broken promise of ours");
        }
        let guard = limiter.guard(0, "/rpc/test", Some(Class::Read), Cost::fixed(1));
        let mut router = axum::Router::new().route("/", axum::routing::get(panics).layer(guard));
        let mut request = Request::new(axum::body::Body::empty());
        request.extensions_mut().insert(limiter.caller([127, 0, 0, 1].into()));
        let response = Service::<Request>::call(&mut router, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
        assert_eq!(&body[..], br#"{"detail":"internal error","code":"internal"}"#);
    }

    proptest! {
        #[test]
        fn no_query_panics_the_cost(query in "[a-z0-9&=%]{0,40}") {
            if let Ok(uri) = format!("/x?{query}").parse() {
                let cost = Cost { base: 1, asked: Asked::Blocks, per_unit: 10 }.of(&uri);
                prop_assert!(cost >= 1);
            }
        }
    }
}
