//! The one trait of a role, linked or loaded.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::error::RoleError;
use crate::group::RoleCommand;
use crate::{BoxFuture, RoleContext};

/// The work of an instance, detached from the role: it owns what it needs.
pub type Work = BoxFuture<'static, Result<(), RoleError>>;

/// A kind of work that stations can run. Implement it with [`macro@crate::role`]; each method's doc opens with a line
/// that says who calls it, in which state, and whether it may wait.
///
/// The life of an instance: `validate`, `start`, then `update` any number of times beside `run`, then `stop` or
/// `detach`. Commands are callable from the end of `start` to the beginning of `stop` and cancelled before `update`.
pub trait Role: Sized + Send + Sync + 'static {
    /// The role's name in the fleet file, matched exactly.
    const NAME: &'static str;
    /// The role's version, for people.
    const VERSION: &'static str;
    /// How many instances a station may run; 0 for any number.
    const INSTANCES: u32;
    /// What the role is for; taken from the doc comment of the `impl` block.
    const DOC: &'static str;
    /// An instance's configuration. Use `#[serde(deny_unknown_fields)]`, so that a typing error is found in the plan.
    type Config: DeserializeOwned + JsonSchema + Send + 'static;

    /// *Station, while planning a push; no instance exists; must not wait or change anything.* Where keys do not decode, it
    /// is called with what is left without them, if that decodes: an operator hears of everything at once. The push is refused
    /// in any case, and what it says of keys that were left out, or of the whole, is not shown.
    ///
    /// # Errors
    ///
    /// [`RoleError::rejected`] or [`RoleError::invalid`]: the whole push is refused, with this as one of its reasons.
    fn validate(_config: &Self::Config) -> Result<(), RoleError> {
        Ok(())
    }

    /// *Supervisor, to bring an instance up; may wait.* The instance is `active` once this returns, so a ready check
    /// belongs here, with [`RoleContext::waiting`] to say what it waits for.
    ///
    /// # Errors
    ///
    /// Counted as a failure; the supervisor tries again as the instance's restart policy says.
    fn start(config: Self::Config, cx: &RoleContext) -> impl Future<Output = Result<Self, RoleError>> + Send;

    /// *Supervisor, with a validated new configuration; no command runs meanwhile; may wait.* Takes it whole, or leaves
    /// everything as it was.
    ///
    /// # Errors
    ///
    /// [`RoleError::NeedsRestart`]: the instance is stopped and started with it instead. Anything else is shown as the
    /// instance's failure to update, and it is restarted too.
    fn update(
        &mut self,
        _config: Self::Config,
        _cx: &RoleContext,
    ) -> impl Future<Output = Result<(), RoleError>> + Send {
        async { Err(RoleError::NeedsRestart) }
    }

    /// *Supervisor, once after `start`; must not wait.* Returns the instance's own work, if it has any. When that
    /// returns `Ok` the instance is `completed`; `Err` is a failure that the supervisor counts. It is dropped before
    /// `stop`.
    fn run(&mut self, _cx: &RoleContext) -> Option<Work> {
        None
    }

    /// *Supervisor, to end the instance; commands and work have ended; may wait, within the instance's stop time-out.*
    fn stop(self, _cx: &RoleContext) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// *Supervisor, when the station restarts and the instance should not notice; may wait.* A role whose work can
    /// outlive the station lets go of it here and finds it again in `start`. Others stop.
    fn detach(self, cx: &RoleContext) -> impl Future<Output = ()> + Send {
        self.stop(cx)
    }

    /// *Supervisor, for an instance that an earlier station left in [`Role::detach`] or by crashing, and that is not to be
    /// started again; no instance exists; may wait.* Ends what may still run.
    fn abandon(_cx: &RoleContext) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// *Supervisor, after a restart of the station and before `start`; no instance exists; may wait at most 2 s.* Returns whether
    /// something that an earlier station left in [`Role::detach`] or by crashing is still there for `start` to find again. If so,
    /// the supervisor calls `start` at once; otherwise it waits for the instance's needs first. It asks also after a stop that did not
    /// end in time: what is still there is shown as failed, with the last text of [`RoleContext::ended`].
    fn survives(_cx: &RoleContext) -> impl Future<Output = bool> + Send {
        async { false }
    }

    /// *Factory.* The commands of the role; the macro writes this.
    fn commands() -> Vec<RoleCommand<Self>> {
        Vec::new()
    }
}
