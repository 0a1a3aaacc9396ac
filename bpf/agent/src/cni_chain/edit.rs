//! Edits of one network configuration: from its text to the text with, or without, our plugin.
//!
//! Pure. What the container runtime would refuse to load is a [`Fault`] and never edited: somebody
//! else may be writing it just now. Every key that is not ours is kept.

use seine_cni::PLUGIN_TYPE;
use seine_cni::SUPPORTED_VERSIONS;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

/// What is appended to the name of a single `.conf`, or `.json`, that becomes a list: the name says
/// where it came from, and sorts in the same place.
const LIST: &str = ".conflist";

/// Why a network configuration can't have our plugin. The runtime's view: containerd starts no pod
/// while the first file is one of these, CRI-O takes the next file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Half written, or broken.
    #[error("is no JSON object: {0}")]
    NotJson(String),
    /// A list must have one.
    #[error("has no name")]
    NoName,
    /// Nothing makes the pod's network, so that nothing can be chained to it.
    #[error("has no plugin that makes a network")]
    NoPlugin,
    /// An entry that is no object or has no `type`.
    #[error("plugin {0} of its list has no type")]
    NoType(usize),
    /// Our plugin would refuse to run, and with it every pod of the node.
    #[error("has cniVersion {0}, which seine-cni does not speak (it speaks 0.3.0 to 1.1.0)")]
    Version(String),
}

/// What is to be done to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// Nothing: it is as it should be.
    None,
    /// Give the file of that name this text.
    Replace {
        /// The file.
        name: String,
        /// Its new text.
        text: String,
    },
    /// Write `name`, then remove `instead_of`.
    Rename {
        /// The new file.
        name: String,
        /// Its text.
        text: String,
        /// The file whose place it takes.
        instead_of: String,
    },
}

/// Puts our plugin's entry into the configuration of this file.
///
/// An entry of ours that is right stays wherever it is behind the first plugin, so that two
/// programs that both want to be last don't move each other for ever.
///
/// # Errors
///
/// The file is none that a runtime would load, or one that our plugin can't be in.
pub(super) fn with_plugin(name: &str, text: &str, entry: &Value) -> Result<Edit, Fault> {
    let mut root = parse(text)?;
    if !is_list(name) {
        check_versions(&root)?;
        if !has_type(&Value::Object(root.clone())) {
            return Err(Fault::NoType(0));
        }
        // A list of ours and ours again would be one that can't be told from a broken one.
        if root.get("type").and_then(Value::as_str) == Some(PLUGIN_TYPE) {
            return Err(Fault::NoPlugin);
        }
        let mut list = Map::new();
        // As the runtime itself makes a list of a single configuration.
        for key in ["cniVersion", "name"] {
            if let Some(value) = root.get(key) {
                list.insert(key.into(), value.clone());
            }
        }
        check_name(&list)?;
        list.insert("plugins".into(), json!([root, entry]));
        return Ok(Edit::Rename {
            name: format!("{name}{LIST}"),
            text: print(&list),
            instead_of: name.into(),
        });
    }
    check_name(&root)?;
    check_versions(&root)?;
    let plugins = plugins(&mut root)?;
    if plugins.iter().all(is_ours) {
        return Err(Fault::NoPlugin);
    }
    let right = plugins
        .iter()
        .enumerate()
        .filter(|(_, plugin)| is_ours(plugin))
        .map(|(index, plugin)| (index > 0, plugin == entry))
        .collect::<Vec<_>>();
    if right == [(true, true)] {
        return Ok(Edit::None);
    }
    // In the place of the first one that may stay, or at the end.
    let place = plugins
        .iter()
        .position(is_ours)
        .filter(|index| *index > 0)
        .unwrap_or(usize::MAX);
    plugins.retain(|plugin| !is_ours(plugin));
    plugins.insert(place.min(plugins.len()), entry.clone());
    Ok(Edit::Replace {
        name: name.into(),
        text: print(&root),
    })
}

/// Takes our plugin out; a single configuration that became a list becomes one again.
///
/// # Errors
///
/// The file can't be read as a configuration; whether our plugin is in it can't be told.
pub(super) fn without_plugin(name: &str, text: &str) -> Result<Edit, Fault> {
    let mut root = parse(text)?;
    if !is_list(name) {
        return Ok(Edit::None);
    }
    let Ok(plugins) = plugins(&mut root) else {
        return Ok(Edit::None);
    };
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    if plugins.len() == before {
        return Ok(Edit::None);
    }
    if let (Some(original), [Value::Object(only)]) = (single(name), plugins.as_slice()) {
        return Ok(Edit::Rename {
            name: original.into(),
            text: print(only),
            instead_of: name.into(),
        });
    }
    Ok(Edit::Replace {
        name: name.into(),
        text: print(&root),
    })
}

/// Puts the entry into a file and takes it out again. For tests: what is put in stays where it is when it is looked
/// at again, and nothing of it is there once it is taken out.
#[doc(hidden)]
pub fn check_edits(name: &str, text: &str, entry: &Value) {
    let (name, text) = match with_plugin(name, text, entry) {
        Ok(Edit::Replace { name, text } | Edit::Rename { name, text, .. }) => (name, text),
        Ok(Edit::None) => (name.to_owned(), text.to_owned()),
        Err(_) => return,
    };
    let again = with_plugin(&name, &text, entry);
    assert_eq!(again, Ok(Edit::None), "a second look changes it: {text}");
    match without_plugin(&name, &text).expect("what was made is read") {
        Edit::Replace { text, .. } | Edit::Rename { text, .. } => {
            let mut root = parse(&text).expect("JSON");
            let ours = plugins(&mut root).is_ok_and(|plugins| plugins.iter().any(is_ours));
            assert!(!ours, "it is still there: {text}");
        }
        Edit::None => panic!("it was not found: {text}"),
    }
}

/// The single configuration that this list was made of by [`with_plugin`].
pub(super) fn single(name: &str) -> Option<&str> {
    name.strip_suffix(LIST).filter(|name| is_single(name))
}

/// Would a runtime read a file of this name? As libcni's `ConfFiles`: by its end alone, hidden
/// files too.
pub(super) fn is_configuration(name: &str) -> bool {
    is_list(name) || is_single(name)
}

fn is_list(name: &str) -> bool {
    name.ends_with(LIST)
}

fn is_single(name: &str) -> bool {
    name.ends_with(".conf") || name.ends_with(".json")
}

fn parse(text: &str) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_str(text) {
        Ok(Value::Object(root)) => Ok(root),
        Ok(_) => Err(Fault::NotJson("it is another kind of value".into())),
        Err(error) => Err(Fault::NotJson(error.to_string())),
    }
}

fn check_name(root: &Map<String, Value>) -> Result<(), Fault> {
    match root.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Ok(()),
        _ => Err(Fault::NoName),
    }
}

/// The runtime may choose any of the versions that are offered.
fn check_versions(root: &Map<String, Value>) -> Result<(), Fault> {
    let listed = root.get("cniVersions").and_then(Value::as_array);
    let mut versions: Vec<_> = root
        .get("cniVersion")
        .into_iter()
        .chain(listed.into_iter().flatten())
        .collect();
    // What the specification makes of a missing version.
    let first = Value::from("0.1.0");
    if versions.is_empty() {
        versions.push(&first);
    }
    for version in versions {
        let known = version
            .as_str()
            .is_some_and(|version| SUPPORTED_VERSIONS.contains(&version));
        if !known {
            return Err(Fault::Version(version.to_string()));
        }
    }
    Ok(())
}

fn plugins(root: &mut Map<String, Value>) -> Result<&mut Vec<Value>, Fault> {
    match root.get_mut("plugins") {
        Some(Value::Array(plugins)) => match plugins.iter().position(|p| !has_type(p)) {
            None => Ok(plugins),
            Some(index) => Err(Fault::NoType(index)),
        },
        _ => Err(Fault::NoPlugin),
    }
}

fn has_type(plugin: &Value) -> bool {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .is_some_and(|kind| !kind.is_empty())
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN_TYPE)
}

fn print(root: &Map<String, Value>) -> String {
    // The alternate form is indented; a map of strings and values always has one.
    format!("{:#}\n", Value::Object(root.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Value {
        seine_cni::PluginEntry::default().to_value()
    }

    fn list(plugins: Value) -> Value {
        json!({"cniVersion": "1.0.0", "name": "k8s", "disableCheck": true, "x-owner": {"a": [1, null]},
            "plugins": plugins})
    }

    fn edited(name: &str, root: &Value) -> Value {
        match with_plugin(name, &root.to_string(), &entry()).unwrap() {
            Edit::Replace { name: same, text } => {
                assert_eq!(same, name);
                serde_json::from_str(&text).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    fn types(root: &Value) -> Vec<&str> {
        let plugins = root["plugins"].as_array().unwrap();
        plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn the_plugin_becomes_the_last_one_and_every_other_key_stays() {
        let bridge =
            json!({"type": "bridge", "ipam": {"type": "host-local", "ranges": [[]]}, "mtu": 1450});
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let before = list(json!([bridge, portmap]));
        let after = edited("10-a.conflist", &before);
        assert_eq!(after, list(json!([bridge, portmap, entry()])));
        let again = with_plugin("10-a.conflist", &after.to_string(), &entry());
        assert_eq!(again, Ok(Edit::None));
    }

    #[test]
    fn a_plugin_that_came_behind_ours_is_left_there() {
        let root = list(json!([{"type": "bridge"}, entry(), {"type": "other-mesh"}]));
        let edit = with_plugin("10-a.conflist", &root.to_string(), &entry());
        assert_eq!(edit, Ok(Edit::None));
    }

    #[test]
    fn an_older_entry_is_replaced_in_its_place_and_doubles_go() {
        let old = json!({"type": PLUGIN_TYPE, "agentSocket": "/old/cni.sock"});
        let cases = [
            (
                json!([{"type": "a"}, old, {"type": "b"}]),
                vec!["a", PLUGIN_TYPE, "b"],
            ),
            (
                json!([{"type": "a"}, entry(), {"type": "b"}, old]),
                vec!["a", PLUGIN_TYPE, "b"],
            ),
            (
                json!([{"type": "a"}, entry(), entry()]),
                vec!["a", PLUGIN_TYPE],
            ),
            // First in the chain it has no result of an earlier plugin, and would fail every pod.
            (
                json!([entry(), {"type": "a"}, {"type": "b"}]),
                vec!["a", "b", PLUGIN_TYPE],
            ),
            (json!([old, {"type": "a"}, entry()]), vec!["a", PLUGIN_TYPE]),
        ];
        for (plugins, wanted) in cases {
            let after = edited("a.conflist", &list(plugins.clone()));
            assert_eq!(types(&after), wanted, "{plugins}");
            let ours = after["plugins"].as_array().unwrap();
            assert_eq!(
                ours.iter().find(|p| is_ours(p)),
                Some(&entry()),
                "{plugins}"
            );
            let again = with_plugin("a.conflist", &after.to_string(), &entry());
            assert_eq!(again, Ok(Edit::None), "{plugins}");
        }
    }

    #[test]
    fn a_single_configuration_becomes_a_list_in_its_place_and_one_again() {
        let single_one = json!({"cniVersion": "0.3.1", "name": "multus", "type": "multus",
            "delegates": [{"x": 1.5}], "big": u64::MAX});
        for name in ["00-multus.conf", "00-multus.json"] {
            let edit = with_plugin(name, &single_one.to_string(), &entry()).unwrap();
            let Edit::Rename {
                name: list_name,
                text,
                instead_of,
            } = edit
            else {
                panic!("{edit:?}")
            };
            assert_eq!(instead_of, name);
            assert_eq!(list_name, format!("{name}.conflist"));
            assert!(
                *name < *list_name && *list_name < *"00-multus.conflist" || name.ends_with("json")
            );
            let list: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(
                list,
                json!({"cniVersion": "0.3.1", "name": "multus", "plugins": [single_one, entry()]})
            );
            assert_eq!(
                with_plugin(&list_name, &text, &entry()),
                Ok(Edit::None),
                "and stays"
            );

            let Edit::Rename {
                name: back,
                text,
                instead_of,
            } = without_plugin(&list_name, &text).unwrap()
            else {
                panic!()
            };
            assert_eq!((back.as_str(), instead_of), (name, list_name));
            assert_eq!(
                serde_json::from_str::<Value>(&text).unwrap(),
                single_one,
                "exactly as it was"
            );
        }
    }

    #[test]
    fn a_list_that_was_made_of_one_and_got_another_plugin_stays_a_list() {
        let root = list(json!([{"type": "a"}, entry(), {"type": "b"}]));
        let edit = without_plugin("x.conf.conflist", &root.to_string()).unwrap();
        assert!(
            matches!(&edit, Edit::Replace { name, .. } if name == "x.conf.conflist"),
            "{edit:?}"
        );
    }

    #[test]
    fn taking_it_out_leaves_what_was_there_before() {
        let before = list(json!([{"type": "a", "k": {}}, {"type": "b"}]));
        let with = edited("a.conflist", &before);
        let Edit::Replace { text, .. } = without_plugin("a.conflist", &with.to_string()).unwrap()
        else {
            panic!()
        };
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), before);
        for untouched in [
            ("a.conflist", before.to_string()),
            ("a.conflist", json!({"name": "no plugins"}).to_string()),
            ("a.conf", json!({"name": "x", "type": "y"}).to_string()),
        ] {
            assert_eq!(without_plugin(untouched.0, &untouched.1), Ok(Edit::None));
        }
        assert!(matches!(
            without_plugin("a.conflist", "{"),
            Err(Fault::NotJson(_))
        ));
    }

    #[test]
    fn what_a_runtime_would_not_load_is_not_edited() {
        let version = |version: &str| {
            json!({"cniVersion": version, "name": "n", "plugins": [{"type": "a"}]}).to_string()
        };
        let not_json = |text: &str| {
            assert!(
                matches!(
                    with_plugin("a.conflist", text, &entry()),
                    Err(Fault::NotJson(_))
                ),
                "{text:?}"
            );
        };
        for text in ["", "{", "{\"name\": \"n\", \"plug", "[]", "null", "\u{0}"] {
            not_json(text);
        }
        let cases = [
            (
                "a.conflist",
                json!({"cniVersion": "1.0.0", "plugins": [{"type": "a"}]}).to_string(),
                Fault::NoName,
            ),
            (
                "a.conflist",
                json!({"cniVersion": "1.0.0", "name": "", "plugins": [{"type": "a"}]}).to_string(),
                Fault::NoName,
            ),
            (
                "a.conf",
                json!({"cniVersion": "1.0.0", "type": "a"}).to_string(),
                Fault::NoName,
            ),
            (
                "a.conf",
                json!({"cniVersion": "1.0.0", "name": "n", "type": PLUGIN_TYPE}).to_string(),
                Fault::NoPlugin,
            ),
            (
                "a.conflist",
                json!({"cniVersion": "1.0.0", "name": "n"}).to_string(),
                Fault::NoPlugin,
            ),
            (
                "a.conflist",
                json!({"cniVersion": "1.0.0", "name": "n", "plugins": {}}).to_string(),
                Fault::NoPlugin,
            ),
            ("a.conflist", list(json!([])).to_string(), Fault::NoPlugin),
            (
                "a.conflist",
                list(json!([entry()])).to_string(),
                Fault::NoPlugin,
            ),
            (
                "a.conflist",
                list(json!([{"type": "a"}, {"typo": "b"}])).to_string(),
                Fault::NoType(1),
            ),
            (
                "a.conflist",
                list(json!(["a"])).to_string(),
                Fault::NoType(0),
            ),
            // A list in a file that the runtime takes for a single configuration.
            (
                "a.conf",
                list(json!([{"type": "a"}])).to_string(),
                Fault::NoType(0),
            ),
            (
                "a.conflist",
                version("0.2.0"),
                Fault::Version("\"0.2.0\"".into()),
            ),
            (
                "a.conflist",
                version("2.0.0"),
                Fault::Version("\"2.0.0\"".into()),
            ),
            (
                "a.conflist",
                json!({"name": "n", "plugins": [{"type": "a"}]}).to_string(),
                Fault::Version("\"0.1.0\"".into()),
            ),
            (
                "a.conflist",
                json!({"cniVersion": 1, "name": "n", "plugins": [{"type": "a"}]}).to_string(),
                Fault::Version("1".into()),
            ),
            (
                "a.conflist",
                json!({"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.2.0"], "name": "n",
                "plugins": [{"type": "a"}]})
                .to_string(),
                Fault::Version("\"1.2.0\"".into()),
            ),
        ];
        for (name, text, wanted) in cases {
            assert_eq!(with_plugin(name, &text, &entry()), Err(wanted), "{text}");
        }
        assert!(
            with_plugin(
                "a.conflist",
                &json!({"cniVersions": ["0.4.0", "1.1.0"], "name": "n", "plugins": [{"type": "a"}]})
                    .to_string(),
                &entry()
            )
            .is_ok()
        );
    }

    #[test]
    fn only_files_that_a_runtime_reads_count() {
        for name in ["10-a.conflist", "a.conf", "b.json", ".hidden.conf"] {
            assert!(is_configuration(name), "{name}");
        }
        for name in [
            "a.conflist.bak",
            "README",
            "a.conf.cilium_bak",
            ".a.conflist.seine-new",
        ] {
            assert!(!is_configuration(name), "{name}");
        }
    }
}
