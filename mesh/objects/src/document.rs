//! YAML documents that remember where each of their fields stands.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Number, Value};
use serde_saphyr::Spanned;

/// One document of a file, parsed but not yet typed.
pub(crate) struct Document {
    tree: Spanned<Yaml>,
    /// Lines of the file that stand before the document.
    before: u64,
}

impl Document {
    /// Parses one document whose text starts after `before` lines of its file. `None`: it holds
    /// nothing.
    pub(crate) fn parse(text: &str, before: u64) -> Result<Option<Self>, YamlError> {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        match serde_saphyr::from_str_with_options::<Spanned<Yaml>>(text, options) {
            Ok(tree) if matches!(tree.value, Yaml::Null) => Ok(None),
            Ok(tree) => Ok(Some(Self { tree, before })),
            Err(error) => {
                let line = error.location().map(|at| before + at.line().max(1));
                Err(YamlError {
                    line,
                    message: error.to_string(),
                })
            }
        }
    }

    pub(crate) fn value(&self) -> Value {
        self.tree.value.to_value()
    }

    /// The line, counted from 1, of the field at a path such as `spec.rules[0].to`, or of the
    /// closest thing around it that is there.
    pub(crate) fn line_of(&self, path: &str) -> u64 {
        let mut at = &self.tree;
        for step in steps(path) {
            let next = match (&at.value, step) {
                (Yaml::Map(entries), Step::Key(key)) => entries
                    .iter()
                    .find(|(name, _)| name == key)
                    .map(|(_, value)| value),
                (Yaml::Seq(items), Step::Index(index)) => items.get(index),
                _ => None,
            };
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        self.before + at.referenced.line().max(1)
    }
}

/// A document that is no YAML.
pub(crate) struct YamlError {
    pub(crate) line: Option<u64>,
    pub(crate) message: String,
}

/// Divides a file at its lines `---`; each part comes with the number of lines before it.
///
/// YAML lets no such line stand inside of a document (not in a block scalar either), so a part
/// that is broken doesn't touch the others.
pub(crate) fn split(text: &str) -> Vec<(u64, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker && offset > start {
            parts.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number as u64);
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts.retain(|(_, part)| !is_blank(part));
    parts
}

fn is_blank(part: &str) -> bool {
    part.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim_start();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    })
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Keys with a dot in them (labels) can't be told from two keys: the walk ends at their parent.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split(['.', '['])
        .filter(|part| !part.is_empty())
        .map(
            |part| match part.strip_suffix(']').and_then(|index| index.parse().ok()) {
                Some(index) => Step::Index(index),
                None => Step::Key(part),
            },
        )
}

enum Yaml {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Seq(Vec<Spanned<Yaml>>),
    Map(Vec<(String, Spanned<Yaml>)>),
}

impl Yaml {
    fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(value) => Value::Number(value.clone()),
            Self::String(value) => Value::String(value.clone()),
            Self::Seq(items) => items.iter().map(|item| item.value.to_value()).collect(),
            Self::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, item)| (key.clone(), item.value.to_value()))
                    .collect(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct YamlVisitor;

        impl<'de> Visitor<'de> for YamlVisitor {
            type Value = Yaml;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_unit<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Null)
            }

            fn visit_none<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Yaml, D::Error> {
                inner.deserialize_any(self)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
                Ok(Yaml::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
                Ok(Yaml::Number(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
                Ok(Yaml::Number(value.into()))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Yaml, E> {
                Number::from_f64(value)
                    .map(Yaml::Number)
                    .ok_or_else(|| E::custom("a number that is not finite"))
            }

            fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
                Ok(Yaml::String(value.into()))
            }

            fn visit_string<E>(self, value: String) -> Result<Yaml, E> {
                Ok(Yaml::String(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Yaml::Seq(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Yaml::Map(entries))
            }
        }

        deserializer.deserialize_any(YamlVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_finds_its_line_in_the_file() {
        let text = "# first\n---\nkind: A\n---\nkind: B\nspec:\n  rules:\n  - to:\n    - ports: [1, 2]\n  - from: []\n";
        let parts = split(text);
        assert_eq!(parts.len(), 2);
        let (before, part) = parts[1];
        let document = Document::parse(part, before).ok().flatten().unwrap();
        assert_eq!(document.line_of("kind"), 5);
        assert_eq!(document.line_of("spec.rules[0].to[0].ports[1]"), 9);
        assert_eq!(document.line_of("spec.rules[1].from"), 10);
        assert_eq!(document.line_of("spec.rules[1].missing"), 10);
        assert_eq!(document.value()["spec"]["rules"][0]["to"][0]["ports"][1], 2);
    }

    #[test]
    fn a_syntax_error_names_the_line_of_the_file() {
        let text = "a: 1\n---\nb:\n  - c\n d: [\n";
        let (before, part) = split(text)[1];
        let error = Document::parse(part, before).err().unwrap();
        assert!(
            error.line.is_some_and(|line| (4..=6).contains(&line)),
            "{:?}",
            error.line
        );
    }

    #[test]
    fn words_that_yaml_1_1_took_for_booleans_stay_strings() {
        let document = Document::parse("a: [yes, no, on, true]\n", 0)
            .ok()
            .flatten()
            .unwrap();
        assert_eq!(
            document.value(),
            serde_json::json!({"a": ["yes", "no", "on", true]})
        );
    }

    #[test]
    fn documents_of_comments_are_none() {
        assert!(split("---\n# nothing\n---\n\n").is_empty());
    }
}
