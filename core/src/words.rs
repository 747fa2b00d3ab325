//! Counts and lists in sentences for people.

/// How many names [`list`] shows.
const LISTED_MAX: usize = 10;

/// `1 station`, `2 stations`: a number with a noun whose plural ends in s.
pub fn count(number: usize, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

/// `a, b, c`. Of more than ten names it shows ten and counts the rest, so that a sentence stays readable in a fleet of thousands.
pub fn list<T: AsRef<str>>(names: &[T]) -> String {
    list_of(names, names.len())
}

/// As [`list`] of `count` names, of which `names` are the first.
pub fn list_of<T: AsRef<str>>(names: &[T], count: usize) -> String {
    let names = &names[..names.len().min(LISTED_MAX)];
    let first = names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if count <= names.len() { first } else { format!("{first} and {} more", count - names.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_all_other_numbers_are_plural() {
        let counts = [0, 1, 2].map(|number| count(number, "station"));
        assert_eq!(counts, ["0 stations", "1 station", "2 stations"]);
    }

    #[test]
    fn a_long_list_ends_with_how_many_are_left_out() {
        assert_eq!(list(&["a", "b"]), "a, b");
        let names: Vec<_> = (0..12).map(|number| number.to_string()).collect();
        assert_eq!(list(&names), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }
}
