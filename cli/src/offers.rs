//! `quiltctl roles`, `quiltctl commands`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::exit::Failure;
use crate::output::{self, Format, plain};
use crate::{Session, complete, reference};

/// Arguments of `roles`.
#[derive(Args)]
pub(crate) struct Roles {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

impl Roles {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let roles = client.roles(&reference::name(&client, &self.station).await?).await?;
        output::list(session.format, &roles, &["ROLE", "VERSION", "INSTANCES", "BLOCKED", "WHAT FOR"], |role| {
            let instances = if role.instances == 0 { "any".into() } else { role.instances.to_string() };
            vec![
                role.role.to_string(),
                plain(&role.version),
                instances,
                role.blocked.to_string(),
                first_line(&role.doc),
            ]
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Arguments of `commands`.
#[derive(Args)]
pub(crate) struct Commands {
    /// Name, id:UUID or mac:ADDRESS
    #[arg(add = complete::stations())]
    station: String,
}

impl Commands {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.connect().await?;
        let commands = client.commands(&reference::name(&client, &self.station).await?).await?;
        let wide = session.format == Format::Wide;
        let mut columns = vec!["INSTANCE", "COMMAND", "KIND", "WHAT IT DOES"];
        if wide {
            columns.extend(["GROUP", "REQUEST"]);
        }
        output::list(session.format, &commands, &columns, |command| {
            let kind = match (command.read, command.streaming) {
                (true, true) => "read, stream",
                (true, false) => "read",
                (false, true) => "stream",
                (false, false) => "",
            };
            let instance = command.instance.as_ref().map_or("(none)", quilt_protocol::Name::as_str);
            let instance = format!("{}/{instance}", command.role);
            let mut row = vec![instance, plain(&command.command), kind.to_owned(), first_line(&command.doc)];
            if wide {
                let properties = command.request_schema["properties"].as_object();
                let keys = properties.map(|keys| keys.keys().cloned().collect::<Vec<_>>().join(", "));
                row.extend([plain(&command.group), plain(&keys.unwrap_or_default())]);
            }
            row
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A request that fits a schema as far as it requires simple values; `None` if nothing is required, or more than that.
pub(crate) fn example(schema: &Value) -> Option<String> {
    let required = schema["required"].as_array()?.iter().filter_map(Value::as_str);
    let value = |key: &str| match schema["properties"][key]["type"].as_str()? {
        "string" => Some(json!("x")),
        "integer" | "number" => Some(json!(1)),
        "boolean" => Some(json!(true)),
        "array" => Some(json!([])),
        _ => None,
    };
    let fields: Option<Map<_, _>> = required.map(|key| Some((key.to_owned(), value(key)?))).collect();
    fields.filter(|fields| !fields.is_empty()).map(|fields| Value::Object(fields).to_string())
}

fn first_line(doc: &str) -> String {
    plain(doc.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_has_a_value_for_each_required_key_or_is_left_out() {
        let schema =
            |required: Value| json!({ "required": required, "properties": { "by": { "type": "integer" }, "x": {} } });
        assert_eq!(example(&schema(json!(["by"]))).as_deref(), Some(r#"{"by":1}"#));
        assert_eq!(example(&schema(json!(["by", "x"]))), None);
        assert_eq!(example(&json!({ "properties": {} })), None);
    }
}
