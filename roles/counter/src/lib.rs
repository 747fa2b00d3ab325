//! quilt's teaching role: a number that commands change. A role with a configuration that is taken in place, state, an
//! attribute, a command that runs alone, one that fails with a typed error, one that only reads, and one that streams.

pub mod api;

use std::time::Duration;

use api::{Count, CounterConfig, CounterError, Divide, Increment, Value};
use quilt_plugin_api::{Items, NoError, RoleContext, RoleError, Streaming, role};

/// A running counter.
pub struct Counter {
    config: CounterConfig,
    value: i64,
    cx: RoleContext,
}

/// Counts. The teaching role.
#[role(name = "counter")]
impl Counter {
    fn validate(config: &CounterConfig) -> Result<(), RoleError> {
        if config.start > config.limit {
            let expected = format!("at most the limit of {}", config.limit);
            return Err(RoleError::invalid("start", expected, config.start.to_string()));
        }
        Ok(())
    }

    async fn start(config: CounterConfig, cx: &RoleContext) -> Result<Self, RoleError> {
        let counter = Self { value: config.start, config, cx: cx.clone() };
        cx.set_attribute("value", &counter.value);
        Ok(counter)
    }

    async fn update(&mut self, config: CounterConfig, _: &RoleContext) -> Result<(), RoleError> {
        self.config = config; // the value stays: an update is not a restart
        Ok(())
    }

    /// Adds to the counter and replies the new value.
    #[command(inline)]
    async fn increment(&mut self, request: Increment) -> Result<i64, CounterError> {
        self.set(self.value.saturating_add(request.by))
    }

    /// Divides the counter and replies the new value.
    #[command]
    async fn divide(&mut self, request: Divide) -> Result<i64, CounterError> {
        let quotient = self.value.checked_div(request.by);
        self.set(quotient.ok_or(CounterError::NotDivisible(self.value, request.by))?)
    }

    /// Replies the value.
    #[command(read, inline)]
    async fn value(&self, _: Value) -> Result<i64, NoError> {
        Ok(self.value)
    }

    /// Sends numbers from the current value on.
    #[command(read, stream)]
    fn count(&self, request: Count, mut items: Items<i64>) -> Streaming<NoError> {
        let (from, cx) = (self.value, self.cx.clone());
        Box::pin(async move {
            for number in 0..i64::from(request.items) {
                if number > 0 && request.every_ms > 0 {
                    cx.sleep(Duration::from_millis(request.every_ms)).await;
                }
                if items.send(&from.saturating_add(number)).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn set(&mut self, value: i64) -> Result<i64, CounterError> {
        if value > self.config.limit {
            return Err(CounterError::OverLimit { would_be: value, limit: self.config.limit });
        }
        self.value = value;
        self.cx.set_attribute("value", &value);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use quilt_plugin_api::testing::{Harness, Outcome};
    use serde_json::json;

    use super::*;

    async fn counter(config: serde_json::Value) -> Harness {
        // It keeps nothing there.
        let folder = tempfile::tempdir().unwrap();
        Harness::start::<Counter>(config, folder.path()).await.unwrap()
    }

    #[tokio::test]
    async fn it_counts_publishes_and_declines() {
        assert_ne!(<Increment as quilt_plugin_api::Command>::fingerprint(), quilt_plugin_api::JSON_ONLY);
        let mut counter = counter(json!({ "start": 5, "limit": 10 })).await;
        assert_eq!(counter.call(Increment { by: 2 }).await, Outcome::Reply(7));
        assert_eq!(counter.seen().attributes["value"], "7");
        let error = CounterError::OverLimit { would_be: 12, limit: 10 };
        assert_eq!(counter.call(Increment { by: 5 }).await, Outcome::Error(error));
        assert_eq!(counter.call(Divide { by: 0 }).await, Outcome::Error(CounterError::NotDivisible(7, 0)));
        counter.update(json!({ "limit": 100 })).await.unwrap();
        assert_eq!(counter.call(Increment { by: 5 }).await, Outcome::Reply(12));
        assert_eq!(counter.items(Count { items: 3, every_ms: 0 }, 9).await, [12, 13, 14]);
    }

    #[tokio::test]
    async fn a_configuration_that_contradicts_itself_is_refused_before_anything_starts() {
        let started = Harness::start::<Counter>(json!({ "start": 5, "limit": 1 }), "unused".as_ref()).await;
        let error = started.err().unwrap().to_string();
        assert_eq!(error, "key `start`: expected at most the limit of 1, got 5");
        let started = Harness::start::<Counter>(json!({ "strat": 5 }), "unused".as_ref()).await;
        let error = started.err().unwrap().to_string();
        assert_eq!(error, "key `strat`: expected `start` or `limit`, got an unknown key");
    }
}
