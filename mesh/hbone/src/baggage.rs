//! Baggage: who the workload at the other end says it is, for telemetry.
//!
//! Pure; a key that isn't known or a value that can't be read is skipped.

use std::fmt;

/// Most entries that are looked at.
const MAX_ENTRIES: usize = 64;

/// The kind of the object that a workload belongs to, as baggage names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// `k8s.deployment.name`
    Deployment,
    /// `k8s.pod.name`
    Pod,
    /// `k8s.job.name`
    Job,
    /// `k8s.cronjob.name`
    CronJob,
}

impl WorkloadKind {
    const ALL: [Self; 4] = [Self::Deployment, Self::Pod, Self::Job, Self::CronJob];

    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
            Self::CronJob => "k8s.cronjob.name",
        }
    }
}

/// The fields of a `baggage` header. All of them are claims of the sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<Box<str>>,
    /// `k8s.namespace.name`
    pub namespace: Option<Box<str>>,
    /// What the workload belongs to, and that object's name.
    pub workload: Option<(WorkloadKind, Box<str>)>,
    /// `service.name`
    pub service: Option<Box<str>>,
    /// `service.version`
    pub version: Option<Box<str>>,
    /// `cloud.region`
    pub region: Option<Box<str>>,
    /// `cloud.availability_zone`
    pub zone: Option<Box<str>>,
}

impl Baggage {
    /// Reads a header's value; `None` if nothing in it is known.
    pub fn parse(text: &str) -> Option<Self> {
        let mut found = Self::default();
        for entry in text.split(',').take(MAX_ENTRIES) {
            // Properties after a semicolon have no meaning here.
            let entry = entry.split(';').next().unwrap_or_default();
            let Some((key, value)) = entry.split_once('=') else {
                continue;
            };
            let (key, value) = (key.trim(), value.trim());
            if !plain(value) {
                continue;
            }
            match key {
                "k8s.cluster.name" => found.cluster = Some(value.into()),
                "k8s.namespace.name" => found.namespace = Some(value.into()),
                "service.name" => found.service = Some(value.into()),
                "service.version" => found.version = Some(value.into()),
                "cloud.region" => found.region = Some(value.into()),
                "cloud.availability_zone" => found.zone = Some(value.into()),
                _ => {
                    let kind = WorkloadKind::ALL.into_iter().find(|kind| kind.key() == key);
                    if let Some(kind) = kind {
                        found.workload = Some((kind, value.into()));
                    }
                }
            }
        }
        (found != Self::default()).then_some(found)
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = self
            .workload
            .as_ref()
            .map(|(kind, name)| (kind.key(), &**name));
        let fields = [
            ("k8s.cluster.name", self.cluster.as_deref()),
            ("k8s.namespace.name", self.namespace.as_deref()),
            workload.map_or(("", None), |(key, name)| (key, Some(name))),
            ("service.name", self.service.as_deref()),
            ("service.version", self.version.as_deref()),
            ("cloud.region", self.region.as_deref()),
            ("cloud.availability_zone", self.zone.as_deref()),
        ];
        let mut separator = "";
        for (key, value) in fields {
            if let Some(value) = value.filter(|value| plain(value)) {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// Whether a value needs no quoting and fits a label.
fn plain(value: &str) -> bool {
    (1..=253).contains(&value.len())
        && value
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_survive_a_round_trip() {
        let baggage = Baggage {
            cluster: Some("Kubernetes".into()),
            namespace: Some("shop".into()),
            workload: Some((WorkloadKind::CronJob, "nightly".into())),
            service: Some("report".into()),
            version: Some("v1".into()),
            region: Some("eu".into()),
            zone: Some("eu-1".into()),
        };
        let text = baggage.to_string();
        assert!(text.starts_with("k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,"));
        assert!(text.contains("k8s.cronjob.name=nightly"));
        assert_eq!(Baggage::parse(&text), Some(baggage));
    }

    #[test]
    fn unknown_and_broken_entries_are_skipped() {
        assert_eq!(Baggage::parse("a=b,=,,;;=\",service.name"), None);
        let long = format!("service.name={},service.version=2;p=q", "x".repeat(254));
        let want = Baggage {
            version: Some("2".into()),
            ..Baggage::default()
        };
        assert_eq!(Baggage::parse(&long), Some(want));
    }

    #[test]
    fn a_value_that_would_break_the_header_is_not_written() {
        let baggage = Baggage {
            service: Some("a,b=c".into()),
            ..Baggage::default()
        };
        assert_eq!(baggage.to_string(), "");
    }
}
