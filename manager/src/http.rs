//! Health, readiness, version and metrics over HTTP, for probes and scrapers.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use quilt_protocol::control::StationState;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::Core;

/// How long a client may take to send its request.
const HEADERS: Duration = Duration::from_secs(2);
/// How many HTTP connections are served at once: probes and scrapers, not the public. One more, and the oldest is closed: those that
/// do not send their request must not keep the others waiting.
const CONNECTIONS_MAX: usize = 64;

/// What the manager counts.
pub(crate) struct Metrics {
    registry: Registry,
    stations: Family<Vec<(String, String)>, Gauge>,
    instances: Family<Vec<(String, String)>, Gauge>,
    clients: Gauge,
    pub(crate) connections: Counter,
    pub(crate) registrations: Counter,
    pub(crate) pushes: Counter,
    pub(crate) requests: Counter,
    pub(crate) relayed: Counter,
    pub(crate) schemas: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("quilt_manager"),
            stations: Family::default(),
            instances: Family::default(),
            clients: Gauge::default(),
            connections: Counter::default(),
            registrations: Counter::default(),
            pushes: Counter::default(),
            requests: Counter::default(),
            relayed: Counter::default(),
            schemas: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("stations", "Known stations by state", metrics.stations.clone());
        registry.register("instances", "Role instances of connected stations by state", metrics.instances.clone());
        registry.register("clients", "Connected tools", metrics.clients.clone());
        registry.register("connections", "Connections accepted", metrics.connections.clone());
        registry.register("registrations", "Registrations received", metrics.registrations.clone());
        registry.register("config_pushes", "Configurations offered", metrics.pushes.clone());
        registry.register("requests", "Requests received", metrics.requests.clone());
        registry.register("relayed", "Requests passed on to stations and tools", metrics.relayed.clone());
        registry.register("schemas_fetched", "Schemas asked of stations", metrics.schemas.clone());
        metrics
    }

    fn text(&self, core: &Core) -> String {
        let (mut stations, mut instances) = (BTreeMap::new(), BTreeMap::new());
        {
            let state = core.state();
            self.clients.set(state.clients.len() as i64);
            for station in state.stations.values() {
                *stations.entry(station.state().name()).or_default() += 1;
                for report in station.live.iter().flat_map(|live| live.instances.values()) {
                    *instances.entry(report.state.name()).or_default() += 1;
                }
            }
            for newcomer in &state.quarantined {
                *stations.entry(StationState::Quarantined.name()).or_default() += 1;
                for report in &newcomer.registration.instances {
                    *instances.entry(report.state.name()).or_default() += 1;
                }
            }
        }
        for (family, counts) in [(&self.stations, stations), (&self.instances, instances)] {
            family.clear();
            for (state, count) in counts {
                family.get_or_create(&vec![("state".to_owned(), state.to_owned())]).set(count);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing into memory does not fail");
        text
    }
}

/// The HTTP side of a manager.
pub(crate) struct Server {
    listener: TcpListener,
}

impl Server {
    pub(crate) async fn bind(address: &str) -> std::io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    pub(crate) fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop.
    pub(crate) async fn serve(self: Arc<Self>, core: Arc<Core>, stop: CancellationToken) {
        let mut open = VecDeque::new();
        loop {
            let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await else { return };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            open.retain(|task: &AbortHandle| !task.is_finished());
            if open.len() >= CONNECTIONS_MAX
                && let Some(oldest) = open.pop_front()
            {
                // Whoever sends a whole request is answered at once, so this one has not.
                oldest.abort();
            }
            let (core_of_task, stop) = (core.clone(), stop.clone());
            let serving = core.spawn(async move {
                let answer = service_fn(|request: Request<Incoming>| {
                    let response = answer(&core_of_task, request.method(), request.uri().path());
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                let _ = stop.run_until_cancelled(connection).await;
            });
            open.push_back(serving);
        }
    }
}

fn answer(core: &Core, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, plain, "ok\n".to_owned()),
        // It listens only once its store is read, so what answers is ready, unless the store takes nothing now.
        (&Method::GET | &Method::HEAD, "/readyz") => match core.store.trouble() {
            None => (StatusCode::OK, plain, "ready\n".to_owned()),
            Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, plain, format!("the store: {trouble}\n")),
        },
        (&Method::GET | &Method::HEAD, "/version") => {
            let version = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "protocol": quilt_protocol::version::SPOKEN,
                "fleet": core.fleet,
                "uptime_s": core.started.elapsed().as_secs(),
            });
            (StatusCode::OK, "application/json", format!("{version}\n"))
        }
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, kind, core.metrics.text(core))
        }
        (&Method::GET | &Method::HEAD, _) => {
            let text = "not found; there are /healthz /readyz /version /metrics\n";
            (StatusCode::NOT_FOUND, plain, text.to_owned())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, plain, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
