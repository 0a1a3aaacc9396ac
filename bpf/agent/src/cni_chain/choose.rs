//! Which configuration of the folder the runtime uses, and what that means for us. Pure.

use serde_json::Value;

use super::edit;
use super::edit::Edit;
use super::edit::Fault;

/// A file of the folder that a runtime would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configuration {
    /// Its name in the folder.
    pub name: String,
    /// Its content, or why it can't be read.
    pub text: Result<String, String>,
}

/// Where the chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The configuration that the runtime uses has our plugin.
    Installed {
        /// Its file.
        file: String,
    },
    /// There is no configuration yet: no pod with a network of its own can start on the node.
    NoConfiguration,
    /// The file that comes first is none that a runtime could load.
    Broken {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What is to be done, and where the chain stands once it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// At most one.
    pub edit: Edit,
    /// Afterwards.
    pub chain: Chain,
}

/// Decides for the files of a folder, in any order.
///
/// The runtime takes the first by name. Where that one is broken, containerd starts nothing and
/// CRI-O takes the next, so the next gets the plugin too, and the chain is called broken. A file that
/// has our plugin and is not the first any more keeps it: when the one before it goes away, the
/// runtime comes back to it at once.
pub(super) fn decide(files: &[Configuration], entry: &Value) -> Decision {
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    let mut broken = None;
    for file in sorted {
        match with_plugin(file, entry) {
            Ok(edit) => {
                let name = match &edit {
                    Edit::Rename { name, .. } => name,
                    Edit::None | Edit::Replace { .. } => &file.name,
                };
                let file = name.clone();
                return Decision {
                    edit,
                    chain: broken.unwrap_or(Chain::Installed { file }),
                };
            }
            Err(why) => {
                broken.get_or_insert(Chain::Broken {
                    file: file.name.clone(),
                    why,
                });
            }
        }
    }
    Decision {
        edit: Edit::None,
        chain: broken.unwrap_or(Chain::NoConfiguration),
    }
}

/// What takes our plugin out of every file, and the files of which nobody can tell whether it is in
/// them, each with the reason.
pub(super) fn removal(files: &[Configuration]) -> (Vec<Edit>, Vec<(String, String)>) {
    let (mut edits, mut unknown) = (Vec::new(), Vec::new());
    for file in files {
        let edit = match &file.text {
            Ok(text) => edit::without_plugin(&file.name, text).map_err(|fault| fault.to_string()),
            Err(error) => Err(error.clone()),
        };
        match edit {
            Ok(Edit::None) => {}
            Ok(edit) => edits.push(edit),
            Err(why) => unknown.push((file.name.clone(), why)),
        }
    }
    (edits, unknown)
}

fn with_plugin(file: &Configuration, entry: &Value) -> Result<Edit, String> {
    let text = file.text.as_ref().map_err(Clone::clone)?;
    edit::with_plugin(&file.name, text, entry).map_err(|fault: Fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry() -> Value {
        seine_cni::PluginEntry::default().to_value()
    }

    fn file(name: &str, text: &str) -> Configuration {
        Configuration {
            name: name.into(),
            text: Ok(text.into()),
        }
    }

    fn list(name: &str, plugins: Value) -> Configuration {
        let root = json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins});
        file(name, &root.to_string())
    }

    fn touched(decision: &Decision) -> Option<&str> {
        match &decision.edit {
            Edit::None => None,
            Edit::Replace { name, .. } | Edit::Rename { name, .. } => Some(name),
        }
    }

    #[test]
    fn the_first_file_by_name_is_the_runtimes() {
        let a = list("10-a.conflist", json!([{"type": "a"}]));
        let b = list("20-b.conflist", json!([{"type": "b"}, entry()]));
        let decision = decide(&[b, a], &entry());
        assert_eq!(touched(&decision), Some("10-a.conflist"));
        assert_eq!(
            decision.chain,
            Chain::Installed {
                file: "10-a.conflist".into()
            }
        );
    }

    #[test]
    fn a_file_with_a_lower_name_that_comes_later_gets_the_plugin_and_the_other_keeps_it() {
        let ours = list("10-a.conflist", json!([{"type": "a"}, entry()]));
        assert_eq!(
            decide(std::slice::from_ref(&ours), &entry()).edit,
            Edit::None
        );
        let single = file(
            "00-multus.conf",
            &json!({"cniVersion": "1.0.0", "name": "m", "type": "multus"}).to_string(),
        );
        let decision = decide(&[ours, single], &entry());
        assert_eq!(touched(&decision), Some("00-multus.conf.conflist"));
        assert_eq!(
            decision.chain,
            Chain::Installed {
                file: "00-multus.conf.conflist".into()
            }
        );
    }

    #[test]
    fn an_owner_that_writes_its_single_file_again_is_before_our_list_of_it() {
        let single = json!({"cniVersion": "1.0.0", "name": "m", "type": "multus", "new": true});
        let ours = list("00-m.conf.conflist", json!([{"type": "multus"}, entry()]));
        let decision = decide(&[ours, file("00-m.conf", &single.to_string())], &entry());
        let Edit::Rename { name, text, .. } = &decision.edit else {
            panic!("{decision:?}")
        };
        assert_eq!(name, "00-m.conf.conflist");
        assert!(text.contains("\"new\": true"), "{text}");
    }

    #[test]
    fn an_empty_folder_waits() {
        let decision = decide(&[], &entry());
        assert_eq!(decision.chain, Chain::NoConfiguration);
        assert_eq!(decision.edit, Edit::None);
    }

    #[test]
    fn a_broken_first_file_is_said_and_the_next_is_prepared() {
        let good = list("20-b.conflist", json!([{"type": "b"}]));
        let unreadable = Configuration {
            name: "10-a.conflist".into(),
            text: Err("permission denied".into()),
        };
        for first in [file("10-a.conflist", "{half"), unreadable] {
            let decision = decide(&[first.clone(), good.clone()], &entry());
            assert_eq!(touched(&decision), Some("20-b.conflist"));
            assert!(
                matches!(&decision.chain, Chain::Broken { file, .. } if file == "10-a.conflist"),
                "{decision:?}"
            );
            let alone = decide(&[first], &entry());
            assert_eq!(alone.edit, Edit::None);
            assert!(matches!(alone.chain, Chain::Broken { .. }));
        }
        // One behind the runtime's does no harm.
        let first = list("10-a.conflist", json!([{"type": "a"}, entry()]));
        let decision = decide(&[first, file("20-b.conf", "{")], &entry());
        assert!(matches!(decision.chain, Chain::Installed { .. }));
    }

    #[test]
    fn removal_goes_through_every_file_and_names_what_can_not_be_read() {
        let files = [
            list("10-a.conflist", json!([{"type": "a"}, entry()])),
            list("20-b.conflist", json!([{"type": "b"}])),
            list("30-c.conf.conflist", json!([{"type": "c"}, entry()])),
            file("40-d.conflist", "{"),
        ];
        let (edits, unknown) = removal(&files);
        assert_eq!(edits.len(), 2);
        assert!(matches!(&edits[0], Edit::Replace { name, .. } if name == "10-a.conflist"));
        assert!(matches!(&edits[1], Edit::Rename { name, .. } if name == "30-c.conf"));
        assert_eq!(unknown.len(), 1);
        assert_eq!(unknown[0].0, "40-d.conflist");
    }
}
