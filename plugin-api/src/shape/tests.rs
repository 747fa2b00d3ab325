use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::body::{Encoding, carried_shape, decode, encode};

/// Types, each in a module of its own so that names can be the same.
macro_rules! types {
    ($($module:ident { $($item:item)+ })*) => {$(
        mod $module {
            #![allow(dead_code, unreachable_pub, reason = "of some only the shape matters")]
            use super::*;
            $(#[derive(Debug, Serialize, Deserialize)] $item)+
        }
    )*};
}

types! {
    gain_second { pub enum Key { Idle, Gain(u8), Mute, Solo } }
    gain_last { pub enum Key { Idle, Mute, Solo, Gain(u8) } }
    gain_wide { pub enum Key { Idle, Gain(u16), Mute, Solo } }
    gain_named { pub enum Key { Idle, Gain { db: u8 }, Mute, Solo } }
    gain_pair { pub enum Key { Idle, Gain(u8, u8), Mute, Solo } }
    twin { pub enum Button { Idle, Gain(u8), Mute, Solo } }
    solo_first { pub enum Key { Solo, Mute } }
    mute_first { pub enum Key { Mute, Solo } }
    documented { pub enum Key {
        /// First.
        Mute,
        /// Second.
        Solo,
    } }
    one { pub struct Point { pub x: u32, pub y: u32 } }
    other { pub struct Point { pub y: u32, pub x: u32 } }
    signed { pub struct Point { pub x: i32, pub y: i32 } }
    named { pub struct Place { pub x: u32, pub y: u32 } }
    longer { pub struct Point { pub x: u32, pub y: u32, pub z: u32 } }
    renamed { pub struct Point { pub x: u32, #[serde(rename = "z")] pub y: u32 } }
    pair { pub struct Pair(pub u32, pub u32); }
    new { pub struct Metres(pub f64); }
    list { pub struct Node { pub value: u8, pub next: Option<Box<Node>> } }
    wide_list { pub struct Node { pub value: u16, pub next: Option<Box<Node>> } }
    tree { pub struct Node { pub value: u8, pub next: Vec<Node> } }
    expression { pub enum Term { Sum(Box<Term>, Box<Term>), Not(Box<Term>), Value(u8) } }
    expression_moved { pub enum Term { Not(Box<Term>), Sum(Box<Term>, Box<Term>), Value(u8) } }
    mutual {
        pub struct Room { pub doors: Vec<Door> }
        pub enum Door { To(Room), Wall(super::mute_first::Key) } }
    mutual_moved {
        pub struct Room { pub doors: Vec<Door> }
        pub enum Door { To(Room), Wall(super::solo_first::Key) } }
    deep { pub struct Outer { pub all: BTreeMap<String, Vec<Option<super::gain_second::Key>>> } }
    deep_moved { pub struct Outer { pub all: BTreeMap<String, Vec<Option<super::gain_last::Key>>> } }
    with_empty { pub struct Both { pub nothing: (), pub flag: bool } }
}

/// A value in bincode and JSON.
type Written = (Vec<u8>, String);

/// A type as it is called, and as bincode treats it.
struct Case {
    name: &'static str,
    shape: String,
    /// Bytes and JSON of some values.
    values: Vec<Written>,
    read: fn(&[u8]) -> Option<Written>,
}

fn case<T: Serialize + DeserializeOwned>(name: &'static str, values: impl IntoIterator<Item = T>) -> Case {
    fn written<T: Serialize>(value: &T) -> Written {
        let bytes = encode(Encoding::Bincode, value).expect("it is carried");
        (bytes.to_vec(), serde_json::to_string(value).expect("it is JSON"))
    }
    let shape = carried_shape::<T>().unwrap_or_else(|| panic!("no shape of {name}"));
    let read = |bytes: &[u8]| decode::<T>(Encoding::Bincode, bytes).ok().map(|value| written(&value));
    Case { name, shape, values: values.into_iter().map(|value| written(&value)).collect(), read }
}

macro_rules! cases {
    ($($type:ty = [$($value:expr),* $(,)?];)*) => { vec![$(case::<$type>(stringify!($type), [$($value),*])),*] };
}

fn cases() -> Vec<Case> {
    use expression::Term;
    use expression_moved::Term as Moved;
    let of = |value, next| list::Node { value, next };
    cases! {
        bool = [false, true];
        u8 = [0, 1, 200, 255];
        i8 = [0, -1, 100];
        u16 = [0, 300, u16::MAX];
        i16 = [0, -300];
        u32 = [1, 70_000];
        i32 = [1, -70_000];
        u64 = [1, u64::MAX];
        i64 = [-1, i64::MIN];
        usize = [1, usize::MAX];
        u128 = [1, u128::MAX];
        f32 = [0.5];
        f64 = [0.5];
        char = ['a', 'ß'];
        String = [String::new(), "a".into(), "ß, and more".into()];
        () = [()];
        NonZeroU8 = [NonZeroU8::MAX];
        Option<u8> = [None, Some(0), Some(7)];
        Option<Option<u8>> = [None, Some(None), Some(Some(7))];
        Vec<u8> = [vec![], vec![1, 200]];
        Vec<i8> = [vec![], vec![-1]];
        Vec<u16> = [vec![], vec![300]];
        Vec<Option<u8>> = [vec![], vec![None, Some(1)]];
        Vec<String> = [vec![], vec!["a".into()]];
        BTreeSet<u8> = [[1, 200].into()];
        [u8; 4] = [[1, 2, 3, 200]];
        [u8; 3] = [[1, 2, 200]];
        (u8, u8, u8) = [(1, 2, 200)];
        (u8, u16) = [(1, 300)];
        (u16, u8) = [(300, 1)];
        BTreeMap<String, u8> = [[("a".to_owned(), 200)].into()];
        HashMap<String, i8> = [[("a".to_owned(), -1)].into()];
        Vec<(String, u8)> = [vec![("a".to_owned(), 200)]];
        Duration = [Duration::new(1, 70_000)];
        IpAddr = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        Result<u8, String> = [Ok(1), Err("a".into())];
        Result<String, u8> = [Ok("a".into()), Err(1)];
        gain_second::Key = [gain_second::Key::Idle, gain_second::Key::Gain(9), gain_second::Key::Mute, gain_second::Key::Solo];
        gain_last::Key = [gain_last::Key::Gain(9), gain_last::Key::Mute, gain_last::Key::Solo];
        gain_wide::Key = [gain_wide::Key::Gain(300), gain_wide::Key::Mute];
        gain_named::Key = [gain_named::Key::Gain { db: 9 }, gain_named::Key::Mute];
        gain_pair::Key = [gain_pair::Key::Gain(9, 8), gain_pair::Key::Mute];
        twin::Button = [twin::Button::Gain(9), twin::Button::Mute, twin::Button::Solo];
        solo_first::Key = [solo_first::Key::Mute, solo_first::Key::Solo];
        mute_first::Key = [mute_first::Key::Mute, mute_first::Key::Solo];
        documented::Key = [documented::Key::Mute, documented::Key::Solo];
        one::Point = [one::Point { x: 1, y: 70_000 }];
        other::Point = [other::Point { x: 1, y: 70_000 }];
        signed::Point = [signed::Point { x: -1, y: 1 }];
        named::Place = [named::Place { x: 1, y: 70_000 }];
        longer::Point = [longer::Point { x: 1, y: 2, z: 70_000 }];
        renamed::Point = [renamed::Point { x: 1, y: 70_000 }];
        pair::Pair = [pair::Pair(1, 70_000)];
        new::Metres = [new::Metres(0.5)];
        Vec<one::Point> = [vec![one::Point { x: 1, y: 70_000 }]];
        Vec<other::Point> = [vec![other::Point { x: 1, y: 70_000 }]];
        list::Node = [of(1, Some(Box::new(of(200, None))))];
        wide_list::Node = [wide_list::Node { value: 300, next: None }];
        tree::Node = [tree::Node { value: 1, next: vec![tree::Node { value: 2, next: vec![] }, tree::Node { value: 3, next: vec![] }] }];
        Term = [Term::Sum(Box::new(Term::Value(1)), Box::new(Term::Not(Box::new(Term::Value(2))))), Term::Value(3)];
        Moved = [Moved::Sum(Box::new(Moved::Value(1)), Box::new(Moved::Not(Box::new(Moved::Value(2)))))];
        mutual::Room = [mutual::Room { doors: vec![mutual::Door::Wall(mute_first::Key::Solo)] }];
        mutual_moved::Room = [mutual_moved::Room { doors: vec![mutual_moved::Door::Wall(solo_first::Key::Solo)] }];
        deep::Outer = [deep::Outer { all: [("a".to_owned(), vec![None, Some(gain_second::Key::Mute)])].into() }];
        deep_moved::Outer = [deep_moved::Outer { all: [("a".to_owned(), vec![None, Some(gain_last::Key::Mute)])].into() }];
        with_empty::Both = [with_empty::Both { nothing: (), flag: true }];
    }
}

/// How the values of one type, as bincode writes them, arrive in another.
#[derive(PartialEq, Debug)]
enum Arrive {
    Unchanged,
    /// Some are refused, as a number of 0 is by one that cannot be; the others arrive unchanged.
    OrNot,
    Changed,
}

fn arrive(written: &Case, read: &Case) -> Arrive {
    let mut all = Arrive::Unchanged;
    for (bytes, json) in &written.values {
        match (read.read)(bytes) {
            None => all = Arrive::OrNot,
            Some(got) if got == (bytes.clone(), json.clone()) => {}
            Some(_) => return Arrive::Changed,
        }
    }
    all
}

#[test]
fn shapes_agree_exactly_when_bincode_reads_one_type_as_the_other() {
    let cases = cases();
    let (mut pairs, mut agreeing) = (0, 0);
    for (at, one) in cases.iter().enumerate() {
        for other in &cases[..at] {
            pairs += 1;
            let both = [arrive(one, other), arrive(other, one)];
            let text = format!("{both:?}: {} is {}\n{} is {}", one.name, one.shape, other.name, other.shape);
            if one.shape == other.shape {
                agreeing += 1;
                assert!(!both.contains(&Arrive::Changed), "agree: {text}");
            } else {
                assert_ne!(both, [Arrive::Unchanged, Arrive::Unchanged], "do not agree: {text}");
            }
        }
    }
    assert!(pairs >= 1000 && agreeing >= 5, "{pairs} pairs, {agreeing} of them agree");
}

#[test]
fn what_bincode_cannot_carry_has_no_shape() {
    #[derive(Serialize, Deserialize)]
    struct LeavesOut {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<u8>,
        rest: u8,
    }
    #[derive(Serialize, Deserialize)]
    struct LeavesOutBelow {
        all: (u8, Result<LeavesOut, u8>),
    }
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u8),
        Text(String),
    }
    #[derive(Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Number { value: u8 },
    }
    #[derive(Serialize, Deserialize)]
    #[serde(tag = "kind", content = "value")]
    enum Adjacent {
        Number(u8),
        Text(String),
    }
    #[derive(Serialize, Deserialize)]
    struct Flat {
        #[serde(flatten)]
        all: BTreeMap<String, u8>,
    }
    #[derive(Serialize, Deserialize)]
    #[serde(try_from = "String")]
    struct Password(String);
    impl TryFrom<String> for Password {
        type Error = &'static str;
        fn try_from(text: String) -> Result<Self, Self::Error> {
            if text == "xyzzy" { Ok(Self(text)) } else { Err("wrong") }
        }
    }
    /// Its code panics.
    struct Odd;
    impl<'de> Deserialize<'de> for Odd {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("decoding panics, as it was asked to")
        }
    }
    impl Serialize for Odd {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_unit()
        }
    }
    assert_eq!(carried_shape::<Odd>(), None);
    assert_eq!(carried_shape::<Value>(), None);
    assert_eq!(carried_shape::<Vec<Value>>(), None);
    assert_eq!(carried_shape::<LeavesOut>(), None);
    assert_eq!(carried_shape::<LeavesOutBelow>(), None);
    assert_eq!(carried_shape::<Either>(), None);
    assert_eq!(carried_shape::<Tagged>(), None);
    assert_eq!(carried_shape::<Adjacent>(), None);
    assert_eq!(carried_shape::<Flat>(), None);
    assert_eq!(carried_shape::<(Password, u8)>(), None);
}

#[test]
fn a_shape_is_told_by_names_order_and_leaves_not_by_names_of_types() {
    assert_eq!(carried_shape::<new::Metres>(), carried_shape::<f64>());
    assert_eq!(carried_shape::<crate::NoError>().unwrap(), "enum[]{}");
    assert_eq!(carried_shape::<Result<u8, crate::NoError>>().unwrap(), r#"enum["Ok", "Err"]{ u8; enum[]{};}"#);
    assert_eq!(carried_shape::<list::Node>().unwrap(), r#"struct["value", "next"](u8*1,option<^1>*1,)"#);
    assert_eq!(carried_shape::<gain_second::Key>().unwrap(), r#"enum["Idle", "Gain", "Mute", "Solo"]{; u8;;;}"#);
}
