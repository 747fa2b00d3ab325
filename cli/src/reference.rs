//! Stations named in other words than their names, and targets.

use quilt_client::control::{InstanceRef, LeftOut, StationView};
use quilt_client::{AskError, Client, Delivered, Outcome};
use quilt_core::words::{count, list_of};
use quilt_manager::selector::{Selector, is_selector, tell_unknown};
use quilt_protocol::{Address, Name};

use crate::exit::{Failure, REFUSED, USAGE};

/// Every station that a name, `id:<uuid>` or `mac:<address>` means: several if one identity is claimed by two machines.
///
/// # Errors
///
/// There is none, or they are different stations.
pub(crate) async fn views(client: &Client, reference: &str) -> Result<Vec<StationView>, Failure> {
    let selector = match reference.split_once(':') {
        Some((key @ ("id" | "mac"), value)) => format!("{key}={}", value.to_ascii_lowercase()),
        _ => {
            format!("name={}", reference.parse::<Name>().map_err(|error| Failure::with_code(USAGE, error.to_string()))?)
        }
    };
    let views = client.stations(&selector).await?;
    match &views[..] {
        [] => Err(refused(format!("there is no station {reference}; `quiltctl stations` lists them"))),
        [first, others @ ..] if others.iter().all(|other| other.id == first.id) => Ok(views),
        _ => {
            let ids: Vec<_> = views.iter().map(|view| format!("{} (id:{})", view.name, view.id)).collect();
            Err(refused(format!("{reference} means several stations: {}", ids.join(", "))))
        }
    }
}

/// The name of the station that a reference means. A name is taken as it is: whoever is asked next knows it or not.
///
/// # Errors
///
/// As [`views`].
pub(crate) async fn name(client: &Client, reference: &str) -> Result<Name, Failure> {
    if reference.contains(':') {
        return Ok(views(client, reference).await?.swap_remove(0).name);
    }
    reference.parse().map_err(|error| Failure::with_code(USAGE, format!("{error}")))
}

/// The instances that a target means. Says on standard error what a selector leaves out.
///
/// # Errors
///
/// The target means no instance, or no answer.
pub(crate) async fn instances(client: &Client, target: &str) -> Result<Vec<InstanceRef>, AskError> {
    let instances = client.resolve(target, None).await?;
    let left_out = if is_selector(target) { client.left_out(target).await? } else { LeftOut::default() };
    let LeftOut { away, away_count, unknown_labels } = left_out;
    if let Some(text) = tell_unknown(&unknown_labels) {
        eprintln!("quiltctl: {text}; `quiltctl stations -o wide` shows the labels that there are");
    }
    let is = if away_count == 1 { "is" } else { "are" };
    let who = format!("{} {is} away: {}", count(away_count, "station"), list_of(&away, away_count));
    let ended = |outcome, text| Err(AskError::Ended { outcome, text });
    match (instances.is_empty(), away_count) {
        (true, 0) => {
            let text =
                format!("{target:?} means no instance of a connected station; `quiltctl stations` lists stations");
            ended(Outcome::NoTarget, text)
        }
        (true, _) => ended(
            Outcome::PeerLost(Delivered::No),
            format!("{target:?} means no instance of a connected station; {who}"),
        ),
        (false, 0) => Ok(instances),
        (false, _) => {
            eprintln!("quiltctl: left out, because {who}");
            Ok(instances)
        }
    }
}

/// Says on standard error which labels of a selector no station has.
pub(crate) async fn note_unknown_labels(client: &Client, selector: &str) {
    if let Ok(left_out) = client.left_out(selector).await
        && let Some(text) = tell_unknown(&left_out.unknown_labels)
    {
        eprintln!("quiltctl: {text}");
    }
}

/// Checks a selector of stations, so that a mistake in it is one of usage.
pub(crate) fn selector(text: &str) -> Result<String, String> {
    Selector::of_stations(text)?;
    Ok(text.to_owned())
}

/// Checks a selector of instances.
fn of_instances(text: &str) -> Result<String, String> {
    text.parse::<Selector>()?;
    Ok(text.to_owned())
}

/// Checks the shape of what has logs: instances, or all of a station. Whether there are such is for the manager to say.
pub(crate) fn log_target(text: &str) -> Result<String, String> {
    if is_selector(text) {
        return of_instances(text);
    }
    no_patterns(text)?;
    let is_station = text.starts_with("id:") || text.starts_with("mac:") || text.parse::<Name>().is_ok();
    if is_station || matches!(text.split('/').count(), 2 | 3) {
        return Ok(text.to_owned());
    }
    Err("expected station/role/instance, station/role, a station or a selector such as room=a".into())
}

/// Checks the shape of a target: whether there is such an instance is for the manager to say.
pub(crate) fn target(text: &str) -> Result<String, String> {
    if is_selector(text) {
        return of_instances(text);
    }
    no_patterns(text)?;
    match text.parse() {
        Ok(Address::Manager | Address::Client(_) | Address::Instance { .. }) => Ok(text.to_owned()),
        // The station may be meant by `id:` or `mac:`, which are no names.
        _ if matches!(text.split('/').collect::<Vec<_>>()[..], [_, _] | [_, _, _]) => Ok(text.to_owned()),
        Ok(Address::Station(_)) => Err(format!(
            "expected an instance, got a station; use {text}/ROLE/INSTANCE, or \"name={text}\" for all its instances that \
             offer the command"
        )),
        _ => {
            Err("expected station/role/instance, station/role, manager, client:NAME or a selector such as room=a"
                .into())
        }
    }
}

/// Refuses `*` in what is no selector.
fn no_patterns(text: &str) -> Result<(), String> {
    if !text.contains('*') {
        return Ok(());
    }
    Err("`*` stands for any text in a selector only; expected one such as \"name=cam-* and role=process and \
         instance=clock\", or * for all"
        .into())
}

fn refused(text: String) -> Failure {
    Failure::with_code(REFUSED, text)
}
