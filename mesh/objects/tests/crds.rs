//! The committed CRDs are those of the types.

use std::path::Path;

#[test]
fn the_committed_crds_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    for (name, yaml) in seine_objects::policy::crds().unwrap() {
        let committed = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            committed == yaml,
            "{name} is stale: run `cargo run -p seine-control -- crds`"
        );
        let schema = ["type: object", "status: {}"];
        // What the API server refuses before we see it, and what people see there.
        let refused = ["x-kubernetes-validations:", "minLength: 1"];
        let shown = ["shortNames:", "name: Accepted", "name: Enforced", "- seine"];
        for needed in [&schema[..], &refused, &shown].concat() {
            assert!(yaml.contains(needed), "{name} lacks {needed:?}");
        }
        assert!(
            !yaml.contains("additionalProperties: false"),
            "no structural schema"
        );
    }
}
