//! Log lines on standard output.

use quilt_client::control::{InstanceRef, LogLine};
use serde::Serialize;

use crate::output::{self, Format, plain};

/// Shows log lines. For people the pieces of a line are put together again, and a carriage return begins a line.
pub(super) struct Show {
    format: Format,
    times: bool,
    names: bool,
    /// The instance and stream whose line is not ended on the screen.
    open: Option<(InstanceRef, String)>,
    /// The last piece ended with a carriage return.
    returned: bool,
}

/// A line for programs.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(flatten)]
    instance: &'a InstanceRef,
    #[serde(flatten)]
    line: &'a LogLine,
}

impl Show {
    /// `names`: whether each line says whose it is.
    pub(super) fn new(format: Format, times: bool, names: bool) -> Self {
        Self { format, times, names, open: None, returned: false }
    }

    pub(super) fn line(&mut self, instance: &InstanceRef, line: &LogLine) {
        if self.format.is_for_programs() {
            let _ = output::item(self.format, &Item { instance, line });
        } else {
            output::text(&self.text(instance, line));
        }
    }

    /// Ends the last line.
    pub(super) fn end(&mut self) {
        if self.open.take().is_some() {
            output::text("\n");
        }
    }

    fn text(&mut self, instance: &InstanceRef, line: &LogLine) -> String {
        let goes_on = self.open.as_ref().is_some_and(|(of, stream)| of == instance && *stream == line.stream);
        let mut text = String::new();
        if self.open.take().is_some() && !goes_on {
            text.push('\n');
        }
        let returned = std::mem::take(&mut self.returned);
        if line.text.is_empty() && !line.continues && returned {
            // Only the line break after a carriage return.
            return text;
        }
        let ended = if line.continues { None } else { Some(line.text.strip_suffix('\r').unwrap_or(&line.text)) };
        let parts: Vec<_> = ended.unwrap_or(&line.text).split('\r').collect();
        for (number, part) in parts.iter().enumerate() {
            let is_last = number + 1 == parts.len();
            if is_last && line.continues && part.is_empty() {
                self.returned = parts.len() > 1;
                break;
            }
            if number > 0 || !goes_on {
                text += &self.prefix(instance, line);
            }
            text += &plain(part);
            if is_last && line.continues {
                self.open = Some((instance.clone(), line.stream.clone()));
            } else {
                text.push('\n');
            }
        }
        text
    }

    fn prefix(&self, InstanceRef { station, role, instance }: &InstanceRef, line: &LogLine) -> String {
        let mut prefix = String::new();
        if self.names {
            prefix += &format!("{station}/{role}/{instance}  ");
        }
        if self.times {
            prefix += &format!("{} ", line.at);
        }
        if self.format == Format::Wide {
            prefix += &format!("{:>5} ", line.stream);
        }
        prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_line_are_shown_as_one() {
        let instance = |name: &str| InstanceRef {
            station: "s".parse().unwrap(),
            role: "process".parse().unwrap(),
            instance: name.parse().unwrap(),
        };
        let shown = |names: bool, lines: &[(&str, &str, &str, bool)]| {
            let mut show = Show::new(Format::Table, false, names);
            let text: String = lines
                .iter()
                .map(|(of, stream, text, continues)| {
                    let (at, stream, text) = ("T".into(), (*stream).into(), (*text).into());
                    show.text(
                        &instance(of),
                        &LogLine { at, stream, text, continues: *continues, bytes: None, cursor: None },
                    )
                })
                .collect();
            text
        };
        let pieces = [("a", "out", "one ", true), ("a", "out", "line", false), ("a", "out", "", false)];
        assert_eq!(shown(false, &pieces), "one line\n\n");
        let mixed = [("a", "out", "one ", true), ("a", "err", "two", false), ("b", "err", "three", false)];
        assert_eq!(shown(true, &mixed), "s/process/a  one \ns/process/a  two\ns/process/b  three\n");
        let progress = [("a", "out", "1%\r2%\r", true), ("a", "out", "3%\r", true), ("a", "out", "", false)];
        assert_eq!(shown(false, &progress), "1%\n2%\n3%\n");
        assert_eq!(shown(false, &[("a", "out", "dos\r", false)]), "dos\n");
    }
}
