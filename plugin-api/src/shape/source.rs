//! The deserializer that makes up values and records what a type asks for. Like bincode it cannot tell what comes next, so a type
//! that asks has no shape.

use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::recorder::{Recorder, Refusal};
use super::type_table::{Content, Parts, Record};

/// Texts to try: most types that parse text accept one of these.
const TEXTS: [&str; 18] = [
    "",
    "a",
    "1",
    "a/b",
    "a/b/c",
    "/",
    "1s",
    "1.0.0",
    "127.0.0.1",
    "127.0.0.1:80",
    "::1",
    "[::1]:80",
    "http://a.b/",
    "a@b.cd",
    "2020-01-01",
    "12:00:00",
    "2020-01-01T00:00:00Z",
    "00000000-0000-7000-8000-000000000000",
];
/// Lengths to try for byte strings.
const LENGTHS: [usize; 10] = [0, 1, 16, 32, 4, 8, 6, 12, 20, 64];
/// The longest sequence that a type is tried with.
const ITEMS_MAX: usize = 4;

/// Makes up one value.
pub(super) struct Source<'a> {
    pub(super) recorder: &'a mut Recorder,
    /// Receives what the run learns of the type.
    pub(super) record: &'a mut Record,
}

impl Source<'_> {
    fn leaf<V: Copy>(&mut self, name: &'static str, values: &[V]) -> Result<V, Refusal> {
        self.recorder.part()?;
        *self.record = Record::Leaf(name);
        self.recorder.one_of(values)
    }

    fn has_no_shape<T>(self) -> Result<T, Refusal> {
        self.recorder.asks = true;
        Err(Refusal)
    }

    fn parts<'de, V: Visitor<'de>>(self, most: usize, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let mut parts = Parts::default();
        let mut items = PartsInOrder { recorder: self.recorder, parts: &mut parts, left: most };
        items.recorder.depth += 1;
        let value = visitor.visit_seq(&mut items);
        self.recorder.depth -= 1;
        parts.all = value.is_ok();
        *self.record = Record::Parts(parts);
        value
    }
}

macro_rules! leaves {
    ($($method:ident $visit:ident $name:literal $values:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refusal> {
            let value = self.leaf($name, &$values)?;
            visitor.$visit(value)
        }
    )*};
}

impl<'de> Deserializer<'de> for Source<'_> {
    type Error = Refusal;

    leaves! {
        deserialize_bool visit_bool "bool" [false, true];
        deserialize_i8 visit_i8 "i8" [0, 1, 2, -1, 10, 100];
        deserialize_i16 visit_i16 "i16" [0, 1, 2, -1, 10, 100];
        deserialize_i32 visit_i32 "i32" [0, 1, 2, -1, 10, 100];
        deserialize_i64 visit_i64 "i64" [0, 1, 2, -1, 10, 100, 1000];
        deserialize_i128 visit_i128 "i128" [0, 1, 2, -1, 10, 100, 1000];
        deserialize_u8 visit_u8 "u8" [0, 1, 2, 10, 100];
        deserialize_u16 visit_u16 "u16" [0, 1, 2, 10, 100, 1024];
        deserialize_u32 visit_u32 "u32" [0, 1, 2, 10, 100, 1024];
        deserialize_u64 visit_u64 "u64" [0, 1, 2, 10, 100, 1024];
        deserialize_u128 visit_u128 "u128" [0, 1, 2, 10, 100, 1024];
        deserialize_f32 visit_f32 "f32" [0.0, 1.0, 0.5, -1.0, 10.0, 100.0];
        deserialize_f64 visit_f64 "f64" [0.0, 1.0, 0.5, -1.0, 10.0, 100.0];
        deserialize_char visit_char "char" ['\0', 'a', '1'];
        deserialize_str visit_str "text" TEXTS;
        deserialize_string visit_str "text" TEXTS;
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refusal> {
        self.has_no_shape()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refusal> {
        self.has_no_shape()
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refusal> {
        self.has_no_shape()
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        // bincode and JSON encode bytes as a sequence of `u8`.
        *self.record = Record::Seq(Box::new(Record::Leaf("u8")));
        let length = self.recorder.one_of(&LENGTHS)?;
        visitor.visit_bytes(&vec![0; length])
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        *self.record = Record::Leaf("unit");
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let mut inner = Record::Unknown;
        let value = match self.recorder.count(1) {
            Ok(0) => visitor.visit_none(),
            Ok(_) => {
                self.recorder.depth += 1;
                let value = visitor.visit_some(Source { recorder: self.recorder, record: &mut inner });
                self.recorder.depth -= 1;
                value
            }
            Err(refused) => Err(refused),
        };
        *self.record = Record::Option(Box::new(inner));
        value
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let id = self.recorder.enter::<V>("new", &[]);
        *self.record = Record::Named(id);
        let mut inner = Record::Unknown;
        self.recorder.depth += 1;
        let value = visitor.visit_newtype_struct(Source { recorder: self.recorder, record: &mut inner });
        self.recorder.depth -= 1;
        self.recorder.leave(id, inner);
        value
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let mut item = Record::Unknown;
        let value = self.recorder.count(ITEMS_MAX).and_then(|left| {
            let mut items = Items { recorder: self.recorder, key: &mut Record::Unknown, item: &mut item, left };
            items.recorder.depth += 1;
            let value = visitor.visit_seq(&mut items);
            items.recorder.depth -= 1;
            value
        });
        *self.record = Record::Seq(Box::new(item));
        value
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let (mut key, mut item) = (Record::Unknown, Record::Unknown);
        let value = self.recorder.count(1).and_then(|left| {
            let mut items = Items { recorder: self.recorder, key: &mut key, item: &mut item, left };
            items.recorder.depth += 1;
            let value = visitor.visit_map(&mut items);
            items.recorder.depth -= 1;
            value
        });
        *self.record = Record::Map(Box::new(key), Box::new(item));
        value
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refusal> {
        self.parts(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let id = self.recorder.enter::<V>("new", &[]);
        *self.record = Record::Named(id);
        let mut inner = Record::Unknown;
        let value = Source { recorder: self.recorder, record: &mut inner }.parts(len, visitor);
        self.recorder.leave(id, inner);
        value
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let id = self.recorder.enter::<V>("struct", fields);
        *self.record = Record::Named(id);
        let mut inner = Record::Unknown;
        let value = Source { recorder: self.recorder, record: &mut inner }.parts(fields.len(), visitor);
        self.recorder.leave(id, inner);
        value
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.recorder.part()?;
        let id = self.recorder.enter::<V>("enum", variants);
        *self.record = Record::Named(id);
        let value = self.recorder.variant(id).and_then(|variant| {
            self.recorder.depth += 1;
            let value = visitor.visit_enum(OneVariant { recorder: self.recorder, id, variant });
            self.recorder.depth -= 1;
            value
        });
        self.recorder.leave(id, Record::Unknown);
        value
    }
}

/// Items of a sequence or map: all of one type.
struct Items<'a> {
    recorder: &'a mut Recorder,
    key: &'a mut Record,
    item: &'a mut Record,
    left: usize,
}

impl Items<'_> {
    fn take<'de, T: DeserializeSeed<'de>>(
        recorder: &mut Recorder,
        known: &mut Record,
        seed: T,
    ) -> Result<T::Value, Refusal> {
        let mut record = Record::Unknown;
        let value = seed.deserialize(Source { recorder, record: &mut record });
        recorder.known.merge(known, record);
        value
    }
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        Self::take(self.recorder, self.item, seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Items<'_> {
    type Error = Refusal;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        Self::take(self.recorder, self.key, seed).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refusal> {
        Self::take(self.recorder, self.item, seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// Parts of a struct or tuple: each of a type of its own.
struct PartsInOrder<'a> {
    recorder: &'a mut Recorder,
    parts: &'a mut Parts,
    left: usize,
}

impl<'de> SeqAccess<'de> for PartsInOrder<'_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut record = Record::Unknown;
        let value = seed.deserialize(Source { recorder: self.recorder, record: &mut record });
        self.parts.parts.push(record);
        value.map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// A variant of an enum.
struct OneVariant<'a> {
    recorder: &'a mut Recorder,
    id: usize,
    variant: usize,
}

impl<'de> EnumAccess<'de> for OneVariant<'_> {
    type Error = Refusal;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Refusal> {
        let index: U32Deserializer<Refusal> = (self.variant as u32).into_deserializer();
        match seed.deserialize(index) {
            Ok(value) => Ok((value, self)),
            Err(refused) => {
                self.recorder.absent(self.id, self.variant);
                Err(refused)
            }
        }
    }
}

impl<'de> VariantAccess<'de> for OneVariant<'_> {
    type Error = Refusal;

    fn unit_variant(self) -> Result<(), Refusal> {
        self.recorder.saw(self.id, self.variant, Content::Unit);
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Refusal> {
        let mut record = Record::Unknown;
        let value = seed.deserialize(Source { recorder: self.recorder, record: &mut record });
        self.recorder.saw(self.id, self.variant, Content::New(record));
        value
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refusal> {
        let mut record = Record::Unknown;
        let value = Source { recorder: self.recorder, record: &mut record }.parts(len, visitor);
        self.recorder.saw(self.id, self.variant, Content::Tuple(record));
        value
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Refusal> {
        let mut record = Record::Unknown;
        let value = Source { recorder: self.recorder, record: &mut record }.parts(fields.len(), visitor);
        self.recorder.saw(self.id, self.variant, Content::Struct(fields, record));
        value
    }
}
