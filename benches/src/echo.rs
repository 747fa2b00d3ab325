//! The role that is called: sends back what it is sent, as the baseline and the peers do.

use bytes::Bytes;
use quilt_plugin_api::{Command, NoError, RoleContext, RoleError, role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A name of 16 characters and 64 bytes, there and back.
#[derive(Clone, Serialize, Deserialize, JsonSchema, Command)]
#[command(group = "Bench", name = "echo", reply = Payload)]
pub(crate) struct Payload {
    pub(crate) name: String,
    #[schemars(with = "Vec<u8>")]
    pub(crate) value: Bytes,
}

impl Payload {
    pub(crate) fn usual() -> Self {
        Self { name: "0123456789abcdef".into(), value: Bytes::from_static(&[7; 64]) }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EchoConfig {}

pub(crate) struct Echo;

/// Sends back what it is sent.
#[role(name = "echo")]
impl Echo {
    async fn start(_: EchoConfig, _: &RoleContext) -> Result<Self, RoleError> {
        Ok(Self)
    }

    /// Replies what came.
    #[command(read, inline)]
    async fn echo(&self, request: Payload) -> Result<Payload, NoError> {
        Ok(request)
    }
}
