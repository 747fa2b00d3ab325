//! A plugin's library in this process, and its roles as a station handles any role.
//!
//! An image is never unmapped: threads, thread-local destructors and callbacks of it may still run. So it is opened with
//! `RTLD_NODELETE`, kept for ever, and counted.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use libloading::os::unix::{Library as Mapped, RTLD_LOCAL, RTLD_NOW};
use quilt_plugin_api::abi::{self, Entry, Plugin};
use quilt_plugin_api::bridge::{Answer, Waiting, lend, to_buf, to_bytes};
use quilt_plugin_api::{
    BoxFuture, Call, Encoding, Ended, Handler, Instance, Invalid, RoleContext, RoleDescription, RoleError, RoleFactory,
    Work,
};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::child::Library;
use super::services::{HOST, INSTANCES, Placed, STREAMS};
use super::{LoadError, Manifest};

/// `dlopen`'s flag for a library that is never unloaded.
const RTLD_NODELETE: i32 = 0x1000;
/// How many libraries a process may have mapped. Each costs one of 1,024 thread keys and about 32 KiB that are its own
/// (measured with libraries of 1 MB; see docs/plugins.md).
pub(crate) const IMAGES_MAX: usize = 64;
/// From how many on an operator is told.
const IMAGES_WARN: usize = 48;

/// A mapped library that was opened.
pub(crate) struct Image {
    /// The plugin's, for people.
    name: String,
    plugin: &'static Plugin,
    runtime: Handle,
}

/// By content: the same file is mapped once.
static IMAGES: OnceLock<Mutex<HashMap<String, Arc<Image>>>> = OnceLock::new();

impl Image {
    /// Maps a checked private copy of a plugin and opens it. Blocks; its code runs.
    pub(crate) fn open(library: &Library, runtime: &Handle, in_station: bool) -> Result<Arc<Self>, LoadError> {
        let sha256 = &library.sha256;
        let mut images = IMAGES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = images.get(sha256) {
            return Ok(image.clone());
        }
        if images.len() >= IMAGES_MAX {
            return Err(LoadError::ImageBudget { limit: IMAGES_MAX });
        }
        if in_station && images.len() >= IMAGES_WARN {
            let mapped = images.len();
            tracing::warn!(
                plugin = library.name,
                mapped,
                limit = IMAGES_MAX,
                "the station has few places for libraries left"
            );
        }
        if in_station && library.aborts {
            return Err(LoadError::Aborts);
        }
        // SAFETY: the file is a private copy that was checked; what its constructors do is the plugin's responsibility.
        let mapped = unsafe { Mapped::open(Some(&library.path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };
        let mapped = mapped.map_err(|error| LoadError::Dlopen(chain(&error)))?;
        // SAFETY: the symbol's type is told by its magic and size, which are looked at before anything else.
        let entry = unsafe { mapped.get::<*const Entry>(abi::ENTRY_SYMBOL.as_bytes()) };
        let entry: *const Entry = match entry {
            Ok(symbol) => symbol.as_raw_ptr().cast(),
            Err(error) => return Err(LoadError::NoSymbol(chain(&error))),
        };
        // Kept for ever, like what it holds.
        #[allow(clippy::mem_forget, reason = "an image is never unmapped")]
        std::mem::forget(mapped);
        // SAFETY: the datum is mapped for ever; `Entry` begins with what tells whether it is one.
        let entry = unsafe { entry.as_ref() }.ok_or_else(|| LoadError::NoSymbol("it is null".into()))?;
        let plugin = open_entry(entry, in_station)?;
        let image = Arc::new(Self { name: library.name.clone(), plugin, runtime: runtime.clone() });
        images.insert(sha256.clone(), image.clone());
        Ok(image)
    }

    /// The plugin's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the plugin says of itself. Blocks.
    pub(crate) fn describe(&self) -> Result<Manifest, LoadError> {
        let describe = self.plugin.describe.ok_or_else(|| LoadError::NullFunction("describe".into()))?;
        let mut out = empty();
        // SAFETY: of the plugin's table; `out` is valid for this call and ours after it.
        let (status, body) = unsafe { (describe(&raw mut out), to_bytes(out)) };
        let body = body.map_err(|bad| LoadError::Describe(bad.to_string()))?;
        if status != abi::OK {
            return Err(LoadError::Describe(String::from_utf8_lossy(&body).into_owned()));
        }
        Manifest::read(&body)
    }

    /// Its roles.
    pub(crate) fn roles(self: &Arc<Self>, manifest: &Manifest) -> Vec<Arc<dyn RoleFactory>> {
        let roles = manifest.roles.iter();
        roles.map(|role| Arc::new(Loaded { image: self.clone(), role: role.clone() }) as Arc<dyn RoleFactory>).collect()
    }

    /// What carries out calls of a command that the plugin registered.
    pub(super) fn handler(self: &Arc<Self>, instance: u64, command: u64) -> Handler {
        let image = self.clone();
        Arc::new(move |call| image.call(instance, command, call))
    }

    fn call(&self, instance: u64, command: u64, call: Call) -> BoxFuture<'static, Ended> {
        let Some(function) = self.plugin.call else {
            return Box::pin(async { Ended::Refused("the plugin takes no calls".into()) });
        };
        let Call { encoding, body, items } = call;
        let is_json = encoding == Encoding::Json;
        let stream = items.map_or(0, |items| STREAMS.insert(Arc::new(tokio::sync::Mutex::new(items))));
        let encoding = match encoding {
            Encoding::Json => abi::JSON,
            Encoding::Bincode => abi::BINCODE,
        };
        let (completion, waiting) = Waiting::new();
        // SAFETY: of the plugin's table; the body changes hands.
        let handle = unsafe { function(instance, command, stream, encoding, to_buf(body), completion) };
        let guard = CancelUnlessDone { plugin: self.plugin, handle, stream };
        Box::pin(async move {
            let (status, body) = waiting.await;
            guard.done();
            let text = |body: Bytes| String::from_utf8_lossy(&body).into_owned();
            match status {
                abi::OK if is_json && !is_one_json(&body) => {
                    Ended::Refused("it was carried out, but the plugin's reply is not JSON in UTF-8".into())
                }
                abi::OK => Ended::Reply(body),
                abi::APP_ERROR => Ended::Error(body),
                abi::SCHEMA_MISMATCH => Ended::SchemaMismatch(text(body)),
                abi::PANICKED => resume_unwind(Box::new(text(body))),
                abi::TIMED_OUT => Ended::TimedOut,
                abi::DROPPED | abi::CANCELLED => Ended::Lost(text(body)),
                abi::NOT_FOUND | abi::STALE => Ended::Refused("the instance is stopping".into()),
                abi::BUSY => Ended::Overloaded(text(body)),
                abi::REFUSED | abi::FAILED => Ended::Refused(text(body)),
                // A status that a newer contract has is an error of the command's own.
                _ => Ended::Error(body),
            }
        })
    }
}

fn is_one_json(body: &[u8]) -> bool {
    // What is passed over is not looked at: texts in it may be anything.
    std::str::from_utf8(body).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

fn empty() -> abi::Buf {
    to_buf(Bytes::new())
}

/// All that an error says: libloading keeps the reason in its source.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn open_entry(entry: &'static Entry, in_station: bool) -> Result<&'static Plugin, LoadError> {
    if entry.magic != abi::MAGIC || (entry.size as usize) < size_of::<Entry>() {
        return Err(LoadError::BadMagic);
    }
    if entry.major != abi::MAJOR {
        return Err(LoadError::Major { theirs: entry.major, ours: abi::MAJOR });
    }
    #[allow(clippy::unnecessary_min_or_max, reason = "the minor version will not stay 0")]
    let minor = abi::MINOR.min(entry.minor_max);
    if minor < entry.minor_min {
        return Err(LoadError::Minor { theirs: (entry.minor_min, entry.minor_max), ours: abi::MINOR });
    }
    if in_station && entry.flags & abi::FLAG_ABORTS != 0 {
        return Err(LoadError::Aborts);
    }
    if in_station && entry.flags & abi::FLAG_NEEDS_PROCESS != 0 {
        return Err(LoadError::NeedsProcess);
    }
    let open = entry.open.ok_or_else(|| LoadError::NullFunction("open".into()))?;
    let (mut plugin, mut error) = (std::ptr::null(), empty());
    // SAFETY: the table is constant; the places for the results are valid for this call.
    let status = unsafe { open(&HOST, minor, &raw mut plugin, &raw mut error) };
    // SAFETY: written by the plugin, or still the empty one.
    let error = unsafe { to_bytes(error) }.unwrap_or_default();
    if status != abi::OK {
        return Err(LoadError::Open(String::from_utf8_lossy(&error).into_owned()));
    }
    // SAFETY: the contract says that the table is valid for ever.
    let plugin: &'static Plugin =
        unsafe { plugin.as_ref() }.ok_or_else(|| LoadError::NullFunction("the plugin's table".into()))?;
    // All of version 1.0; later ones only grow.
    if (plugin.size as usize) < size_of::<Plugin>() {
        return Err(LoadError::BadMagic);
    }
    Ok(plugin)
}

/// Ends a call that nobody waits for any more, and its stream in any case.
struct CancelUnlessDone {
    plugin: &'static Plugin,
    handle: u64,
    stream: u64,
}

impl CancelUnlessDone {
    fn done(mut self) {
        self.handle = 0;
    }
}

impl Drop for CancelUnlessDone {
    fn drop(&mut self) {
        STREAMS.take(self.stream);
        if let (Some(cancel), true) = (self.plugin.cancel, self.handle != 0) {
            // SAFETY: of the plugin's table; a handle that is over is ignored.
            unsafe { cancel(self.handle) }
        }
    }
}

/// A role of a mapped library.
struct Loaded {
    image: Arc<Image>,
    role: RoleDescription,
}

fn failed(status: u32, body: &Bytes) -> RoleError {
    let text = || String::from_utf8_lossy(body).into_owned();
    match status {
        abi::INVALID => RoleError::Rejected(invalid(body)),
        abi::NEEDS_RESTART => RoleError::NeedsRestart,
        abi::PANICKED => resume_unwind(Box::new(text())),
        abi::CANCELLED | abi::DROPPED => RoleError::failed("the plugin dropped the request"),
        abi::STALE => RoleError::failed("the plugin does not know the instance"),
        _ if body.is_empty() => RoleError::failed(format!("the plugin answered with status {status}")),
        _ => RoleError::failed(text()),
    }
}

fn invalid(body: &Bytes) -> Vec<Invalid> {
    let wrong = serde_json::from_slice(body).unwrap_or_default();
    if wrong != Vec::new() { wrong } else { vec![Invalid::whole(String::from_utf8_lossy(body))] }
}

fn outcome((status, body): Answer) -> Result<(), RoleError> {
    if status == abi::OK { Ok(()) } else { Err(failed(status, &body)) }
}

fn absent() -> RoleError {
    RoleError::failed("the plugin lacks the function for this")
}

impl RoleFactory for Loaded {
    fn description(&self) -> &RoleDescription {
        &self.role
    }

    fn validate(&self, config: &[u8]) -> BoxFuture<'static, Result<(), RoleError>> {
        // Without the function, whatever start takes is fine.
        let Some(validate) = self.image.plugin.validate else { return Box::pin(async { Ok(()) }) };
        let (completion, waiting) = Waiting::new();
        let config = to_buf(Bytes::copy_from_slice(config));
        // SAFETY: of the plugin's table; the name is lent, the configuration changes hands.
        unsafe { validate(lend(self.role.name.as_bytes()), config, completion) };
        Box::pin(async move { outcome(waiting.await) })
    }

    fn start(&self, config: &[u8], cx: RoleContext) -> BoxFuture<'static, Result<Box<dyn Instance>, RoleError>> {
        let Some(start) = self.image.plugin.start else { return Box::pin(async { Err(absent()) }) };
        let placed = Place::new(&self.image, &cx);
        let place = serde_json::to_string(cx.place()).expect("a place is text");
        let (completion, waiting) = Waiting::new();
        let config = to_buf(Bytes::copy_from_slice(config));
        let (role, place) = (lend(self.role.name.as_bytes()), lend(place.as_bytes()));
        // SAFETY: of the plugin's table; names are lent, the configuration changes hands.
        unsafe { start(placed.token, role, place, config, completion) };
        let (give, started) = oneshot::channel();
        self.image.runtime.spawn(async move {
            let answer = waiting.await;
            if let Err((placed, (abi::OK, _))) = give.send((placed, answer)) {
                // Nobody waits for it any more, and what was started is stopped.
                Running { placed, work: false }.end(0).await;
            }
        });
        Box::pin(async move {
            let (placed, (status, body)) =
                started.await.map_err(|_| RoleError::failed("its start was not seen through"))?;
            let Started { work } = serde_json::from_slice(&body).unwrap_or_default();
            outcome((status, body))?;
            Ok(Box::new(Running { placed, work }) as Box<dyn Instance>)
        })
    }

    fn abandon(&self, cx: RoleContext) -> BoxFuture<'static, ()> {
        let Some(abandon) = self.image.plugin.abandon else { return Box::pin(async {}) };
        let placed = Place::new(&self.image, &cx);
        let place = serde_json::to_string(cx.place()).expect("a place is text");
        let (completion, waiting) = Waiting::new();
        // SAFETY: of the plugin's table; names are lent.
        unsafe { abandon(placed.token, lend(self.role.name.as_bytes()), lend(place.as_bytes()), completion) };
        Box::pin(async move {
            waiting.await;
            drop(placed);
        })
    }
}

/// An instance's place in this process; its token is over when this is dropped.
struct Place {
    image: Arc<Image>,
    token: u64,
}

impl Place {
    fn new(image: &Arc<Image>, cx: &RoleContext) -> Self {
        let name = format!("{}/{}", cx.role(), cx.instance()).into();
        let runtime = image.runtime.clone();
        let placed =
            Placed { host: cx.host().clone(), image: image.clone(), runtime, token: 0, name, commands: Arc::default() };
        let token = INSTANCES.insert(placed);
        INSTANCES.with(token, |placed| placed.token = token);
        Self { image: image.clone(), token }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        INSTANCES.take(self.token);
    }
}

/// What a plugin says of an instance that it started.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Started {
    work: bool,
}

struct Running {
    placed: Place,
    /// Has work of its own.
    work: bool,
}

impl Running {
    fn end(self, detach: u32) -> BoxFuture<'static, ()> {
        let Some(stop) = self.placed.image.plugin.stop else { return Box::pin(async {}) };
        let (completion, waiting) = Waiting::new();
        // SAFETY: of the plugin's table.
        unsafe { stop(self.placed.token, detach, completion) };
        Box::pin(async move {
            let (status, body) = waiting.await;
            drop(self);
            if status == abi::PANICKED {
                resume_unwind(Box::new(String::from_utf8_lossy(&body).into_owned()));
            }
        })
    }
}

impl Instance for Running {
    fn update(&mut self, config: &[u8]) -> BoxFuture<'_, Result<(), RoleError>> {
        let Some(update) = self.placed.image.plugin.update else {
            return Box::pin(async { Err(RoleError::NeedsRestart) });
        };
        let (completion, waiting) = Waiting::new();
        // SAFETY: of the plugin's table; the configuration changes hands.
        unsafe { update(self.placed.token, to_buf(Bytes::copy_from_slice(config)), completion) };
        Box::pin(async move { outcome(waiting.await) })
    }

    fn run(&mut self) -> BoxFuture<'_, Option<Work>> {
        let Some(run) = self.placed.image.plugin.run.filter(|_| std::mem::take(&mut self.work)) else {
            return Box::pin(async { None });
        };
        let (completion, waiting) = Waiting::new();
        // SAFETY: of the plugin's table.
        let handle = unsafe { run(self.placed.token, completion) };
        let guard = CancelUnlessDone { plugin: self.placed.image.plugin, handle, stream: 0 };
        let work: Work = Box::pin(async move {
            let answer = waiting.await;
            guard.done();
            outcome(answer)
        });
        Box::pin(async move { Some(work) })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.end(0)
    }

    fn detach(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.end(1)
    }
}
