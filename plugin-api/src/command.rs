//! Typed asks and their answers.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::BoxFuture;
use crate::body::{self, Encoding, Fingerprint};

/// A request type, and what answers it. Derive it in the role's `api` module, which tools link:
///
/// ```
/// # use quilt_plugin_api::Command;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, JsonSchema, Command)]
/// #[command(group = "Janitor's work", reply = u32)]
/// struct Sweep {
///     older_than_days: u32,
/// }
/// assert_eq!(Sweep::NAME, "sweep");
/// ```
///
/// Rust callers whose types are the role's send bincode, which has no names: what serde leaves out or moves by an attribute
/// would be read as something else. So a request with `flatten`, `untagged`, `tag`, `skip_serializing_if` and the like is refused.
/// Types that these attributes are found in otherwise, and `serde_json::Value`, make the command travel as JSON
/// ([`crate::JSON_ONLY`]).
///
/// ```compile_fail
/// # use quilt_plugin_api::Command;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, JsonSchema, Command)]
/// #[command(group = "Janitor's work", reply = u32)]
/// struct Sweep {
///     #[serde(default, skip_serializing_if = "Option::is_none")]
///     older_than_days: Option<u32>,
/// }
/// ```
pub trait Command: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The group its name lives in: descriptive, any characters, so that names never clash.
    const GROUP: &'static str;
    /// Its name, `lower_snake_case`; the type's name unless said otherwise.
    const NAME: &'static str;
    /// The reply; for a streaming command, one item.
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// The command's own error.
    type Error: CommandError;

    /// The fingerprint of the three types. What `#[derive(Command)]` writes computes it once.
    fn fingerprint() -> Fingerprint {
        body::fingerprint_of::<Self>()
    }
}

/// What a command's own error must be able to do: travel, and be shown.
pub trait CommandError: Serialize + DeserializeOwned + JsonSchema + std::fmt::Display + Send + 'static {}

impl<T: Serialize + DeserializeOwned + JsonSchema + std::fmt::Display + Send + 'static> CommandError for T {}

/// For commands that have no error of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NoError {}

impl std::fmt::Display for NoError {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

/// What a streaming command returns: a future that owns what it needs, so that the role stays free meanwhile.
pub type Streaming<E> = BoxFuture<'static, Result<(), E>>;

/// What discovery knows of a command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CommandRecord {
    /// The group its name lives in.
    pub group: String,
    /// Its name.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// Whether it changes nothing.
    pub read: bool,
    /// Whether it answers with a stream of items.
    pub streaming: bool,
    /// Whether it is so short that it may run where it arrives.
    #[serde(default)]
    pub inline: bool,
    /// The fingerprint of request, reply and error; [`crate::JSON_ONLY`] if callers have to send JSON.
    pub fingerprint: Fingerprint,
    /// JSON Schema of the request.
    pub request_schema: Arc<serde_json::Value>,
    /// JSON Schema of the reply, or of an item.
    pub reply_schema: Arc<serde_json::Value>,
    /// JSON Schema of the command's own error.
    pub error_schema: Arc<serde_json::Value>,
}

impl CommandRecord {
    /// The record of `C`.
    pub fn of<C: Command>(doc: &str, read: bool, streaming: bool) -> Self {
        Self {
            group: C::GROUP.into(),
            name: C::NAME.into(),
            doc: doc.into(),
            read,
            streaming,
            inline: false,
            fingerprint: C::fingerprint(),
            request_schema: body::schema_of::<C>(),
            reply_schema: body::schema_of::<C::Reply>(),
            error_schema: body::schema_of::<C::Error>(),
        }
    }
}

/// A call as it reaches a handler.
pub struct Call {
    /// How the body is encoded, and the answer is to be.
    pub encoding: Encoding,
    /// The request.
    pub body: Bytes,
    /// Where items go; only for calls that take a stream.
    pub items: Option<Box<dyn RawItems>>,
}

/// How a call ended, in terms of bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The encoded reply.
    Reply(Bytes),
    /// The encoded error of the command's own; in JSON its text for people may follow as a second document.
    Error(Bytes),
    /// The body is not what the command takes, so nothing was carried out; for people.
    SchemaMismatch(String),
    /// Declined; for people.
    Refused(String),
    /// A limit was reached, so nothing was carried out; for people.
    Overloaded(String),
    /// What was carrying it out is gone, and nobody knows how far it came; for people.
    Lost(String),
    /// It did not end in its time.
    TimedOut,
}

/// Carries out calls of one command.
pub type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Ended> + Send + Sync>;

/// Sends encoded items, no faster than the caller takes them.
pub trait RawItems: Send + 'static {
    /// Sends one; false when the caller takes no more.
    fn send(&mut self, item: Bytes) -> BoxFuture<'_, bool>;
}

/// Sends the items of a streaming command.
pub struct Items<T> {
    raw: Box<dyn RawItems>,
    encoding: Encoding,
    item: PhantomData<fn(T)>,
}

/// The caller takes no more items; end the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl<T: Serialize> Items<T> {
    pub(crate) fn new(raw: Box<dyn RawItems>, encoding: Encoding) -> Self {
        Self { raw, encoding, item: PhantomData }
    }

    /// Sends one item, waiting until the caller takes it.
    ///
    /// # Errors
    ///
    /// [`Gone`] when the caller takes no more.
    pub async fn send(&mut self, item: &T) -> Result<(), Gone> {
        let item = body::encode(self.encoding, item).map_err(|_| Gone)?;
        if self.raw.send(item).await { Ok(()) } else { Err(Gone) }
    }
}

/// Decodes, carries out and encodes.
pub(crate) async fn carry_out<C, F>(call: Call, work: impl FnOnce(C) -> F) -> Ended
where
    C: Command,
    F: Future<Output = Result<C::Reply, C::Error>>,
{
    let encoding = call.encoding;
    match body::decode::<C>(encoding, &call.body) {
        Err(error) => Ended::SchemaMismatch(error),
        Ok(request) => encoded(encoding, work(request).await),
    }
}

pub(crate) fn encoded<R: Serialize, E: CommandError>(encoding: Encoding, result: Result<R, E>) -> Ended {
    let encoded = match &result {
        Ok(reply) => body::encode(encoding, reply).map(Ended::Reply),
        Err(error) => body::encode_error(encoding, error).map(Ended::Error),
    };
    let unknown = |error| Ended::Refused(format!("it was carried out, but its answer cannot be encoded: {error}"));
    encoded.unwrap_or_else(unknown)
}
