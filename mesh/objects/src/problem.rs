//! What is wrong with an object or a file, and what holds in its place.

use std::{fmt, path::PathBuf};

use crate::{Kind, Object, ObjectKey, policy::FieldError};

/// Something that is wrong with an object, or with the file that it should come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file; empty for an object of an API server.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: Option<u64>,
    /// `Kind namespace/name`, as far as known.
    pub object: Option<String>,
    /// `metadata.generation` of the version that is wrong, where it has one.
    pub generation: Option<i64>,
    /// Path of the field, such as `spec.rules[0].to`.
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What holds instead.
    pub in_force: InForce,
}

/// What holds in the place of an object that is invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InForce {
    /// Nothing of it: no earlier version is known.
    #[default]
    Nothing,
    /// The last good version of the object (or of the file's objects).
    LastGood,
    /// A [stand-in](Invalid::stand_in): whether there was a good version is not known.
    StandIn,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}", self.file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        write!(f, "{}", self.message)?;
        match self.in_force {
            InForce::Nothing => Ok(()),
            InForce::LastGood => f.write_str(" (the last good version stays in force)"),
            InForce::StandIn => f.write_str(" (until it is valid, what it selects is denied)"),
        }
    }
}

/// An object that can't be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Invalid {
    /// Its kind.
    pub kind: Kind,
    /// Which one it is, unless even that is wrong.
    pub key: Option<ObjectKey>,
    /// What is wrong; at least one.
    pub errors: Vec<FieldError>,
    /// Of a policy: one that denies what this one selects (a `MeshTLS`: its plaintext), as far as that
    /// can be read. It is for a source that can't know whether a good version was in force.
    pub stand_in: Option<Object>,
}

impl Invalid {
    /// An object that is not even JSON of the expected shape.
    pub fn unreadable(kind: Kind, error: &serde_json::Error) -> Self {
        Self {
            kind,
            key: None,
            stand_in: None,
            errors: vec![FieldError {
                field: String::new(),
                message: error.to_string(),
            }],
        }
    }

    /// What is wrong, of an object that no file has.
    pub fn problems(
        &self,
        generation: Option<i64>,
        in_force: InForce,
    ) -> impl Iterator<Item = Problem> {
        self.errors.iter().map(move |error| Problem {
            file: PathBuf::new(),
            line: None,
            object: Some(self.name()),
            generation,
            field: Some(error.field.clone()).filter(|field| !field.is_empty()),
            message: error.message.clone(),
            in_force,
        })
    }

    /// `Kind namespace/name`, as far as known.
    pub fn name(&self) -> String {
        match &self.key {
            Some(key) => format!("{} {key}", self.kind),
            None => self.kind.to_string(),
        }
    }
}
