//! Reads the numbers of a configuration. Whatever is wrong with one, the error names the range that it must be in.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::program::octal;

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy)]
struct Within<const MIN: i64, const MAX: i64>(i64);

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: i64, const MAX: i64>;

        impl<const MIN: i64, const MAX: i64> Visitor<'_> for Number<MIN, MAX> {
            type Value = Within<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                match (MIN..=MAX).contains(&number) {
                    true => Ok(Within(number)),
                    false => Err(E::custom(format!("{number}, expected a whole number from {MIN} to {MAX}"))),
                }
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }
        }

        deserializer.deserialize_i64(Number)
    }
}

impl<const MIN: i64, const MAX: i64> Within<MIN, MAX> {
    /// The number as the type of its field.
    fn number<T: TryFrom<i64>, E: Error>(self) -> Result<T, E> {
        T::try_from(self.0).map_err(|_| E::custom(format!("{}, expected a whole number from {MIN} to {MAX}", self.0)))
    }
}

/// A priority as `nice` has it.
pub(crate) fn nice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Within::<-20, 19>::deserialize(deserializer)?.number().map(Some)
}

pub(crate) fn oom_score_adj<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Within::<-1000, 1000>::deserialize(deserializer)?.number().map(Some)
}

/// How many files: with fewer a program does not start, and no kernel grants more.
pub(crate) fn open_files<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Within::<16, { 1 << 30 }>::deserialize(deserializer)?.number().map(Some)
}

/// Codes that a program can end with.
pub(crate) fn exit_codes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i32>, D::Error> {
    let codes = Vec::<Within<0, 255>>::deserialize(deserializer)?;
    codes.into_iter().map(Within::number).collect()
}

/// Permissions as octal digits.
pub(crate) fn umask<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    const DIGITS: &str = "octal digits in quotes from \"000\" to \"777\", such as \"027\"";
    struct Umask;

    impl Visitor<'_> for Umask {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(DIGITS)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            match octal(text) {
                Some(_) => Ok(Some(text.to_owned())),
                None => Err(E::custom(format!("{text:?}, expected {DIGITS}"))),
            }
        }
    }

    deserializer.deserialize_str(Umask)
}

#[cfg(test)]
mod tests {
    use quilt_plugin_api::config;
    use serde_json::json;

    use crate::api::ProcessConfig;

    #[test]
    fn a_number_that_is_wrong_is_told_with_the_range_that_it_must_be_in() {
        let document = |value: serde_json::Value| {
            json!({
                "command": ["x"], "nice": value, "oom_score_adj": value, "open_files": value, "success_exit_codes": [value],
                "umask": value,
            })
        };
        for (value, got) in [(json!(-1001), "-1001"), (json!("many"), "text"), (json!(1_u64 << 40), "1099511627776")] {
            let wrong: Vec<_> = config::read::<ProcessConfig>(&document(value.clone()), None).wrong;
            let wrong: Vec<_> = wrong.into_iter().map(|wrong| wrong.invalid.to_string()).collect();
            for (key, range) in [
                ("nice", "from -20 to 19"),
                ("oom_score_adj", "from -1000 to 1000"),
                ("open_files", "from 16 to 1073741824"),
                ("success_exit_codes[0]", "from 0 to 255"),
            ] {
                let expected = format!("key `{key}`: expected a whole number {range}, got {got}");
                assert!(wrong.contains(&expected), "{expected} is missing in {wrong:?}");
            }
            let umask = wrong.iter().find(|wrong| wrong.starts_with("key `umask`")).unwrap();
            assert!(umask.contains("from \"000\" to \"777\", such as \"027\", got"), "{umask}");
        }
        for fine in
            [json!({ "command": ["x"] }), json!({ "command": ["x"], "nice": -20, "open_files": 16, "umask": "0" })]
        {
            assert!(config::read::<ProcessConfig>(&fine, None).wrong.is_empty(), "{fine}");
        }
    }
}
