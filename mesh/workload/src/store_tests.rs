//! The store from push to lookup.

use std::sync::atomic::{AtomicBool, Ordering};

use prost::Message as _;
use seine_policy::Applicable;
use seine_proto::discovery::Resource;
use seine_proto::{security, workload as proto};

use crate::Store;
use crate::testing::{self, API, IntoResource, pod, policy, service, store, uid};

fn key(name: &str) -> crate::ServiceKey {
    let (namespace, hostname) = name.split_once('/').unwrap();
    crate::ServiceKey {
        namespace: namespace.into(),
        hostname: hostname.into(),
    }
}

fn names(applicable: Applicable) -> Result<Vec<String>, Vec<String>> {
    match applicable {
        Applicable::Ready(policies) => Ok(policies.iter().map(|p| p.key.to_string()).collect()),
        Applicable::Missing(names) => Err(names.iter().map(|name| name.to_string()).collect()),
    }
}

fn saved(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.snapshot(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_workload_is_found_by_uid_address_pod_and_service() {
    let both = proto::Workload {
        addresses: vec![testing::bytes("10.0.0.1"), testing::bytes("fd00::1")],
        ..pod("a", "10.0.0.1")
    };
    let store = store([both.resource(), service("api", &["10.96.0.1"]).resource()]);
    let a = store.workload(&uid("a")).unwrap();
    for address in ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"] {
        assert_eq!(
            store.workload_at(address.parse().unwrap()),
            Some(a.clone()),
            "{address}"
        );
    }
    assert_eq!(store.pod("Kubernetes", "shop", "a"), Some(a.clone()));
    assert_eq!(store.pod("Kubernetes", "other", "a"), None);
    assert_eq!(store.endpoints(&key(API)), [a]);
    assert_eq!(
        store
            .service_at("10.96.0.1".parse().unwrap(), None)
            .unwrap()
            .key,
        key(API)
    );
    assert_eq!(
        store
            .service_named("api.shop.svc.cluster.local", None)
            .unwrap()
            .key,
        key(API)
    );
}

#[test]
fn a_replaced_workload_leaves_nothing_behind() {
    let store = store([pod("a", "10.0.0.1").resource()]);
    let moved = proto::Workload {
        services: [].into(),
        ..pod("a", "10.0.0.2")
    };
    assert_eq!(store.apply_addresses(&[moved.resource()], &[]), []);
    assert_eq!(store.workload_at("10.0.0.1".parse().unwrap()), None);
    assert!(store.workload_at("10.0.0.2".parse().unwrap()).is_some());
    assert_eq!(store.endpoints(&key(API)), []);
    assert_eq!(store.counts().workloads, 1);
}

#[test]
fn a_pod_is_found_by_its_name_whatever_its_uid_and_that_of_its_own_cluster_first() {
    let named = |uid: &str, cluster: &str, address| proto::Workload {
        uid: uid.to_owned(),
        cluster_id: cluster.to_owned(),
        ..pod("a", address)
    };
    let store = store([
        named("x", "elsewhere", "10.0.0.1").resource(),
        named("y", "Kubernetes", "10.0.0.2").resource(),
    ]);
    let found = |store: &Store| {
        store
            .pod("Kubernetes", "shop", "a")
            .map(|w| w.uid.to_string())
    };
    assert_eq!(found(&store).as_deref(), Some("y"));
    // The one that is called as the mesh's own control plane does comes first.
    let usual = named(&uid("a"), "Kubernetes", "10.0.0.3");
    assert_eq!(store.apply_addresses(&[usual.resource()], &[]), []);
    assert_eq!(found(&store), Some(uid("a")));
    store.apply_addresses(&[], &[uid("a")]);
    assert_eq!(found(&store).as_deref(), Some("y"));
    // Of another name now.
    let renamed = proto::Workload {
        name: "b".to_owned(),
        ..named("y", "Kubernetes", "10.0.0.2")
    };
    assert_eq!(store.apply_addresses(&[renamed.resource()], &[]), []);
    assert_eq!(found(&store), None);
    assert!(store.pod("Kubernetes", "shop", "b").is_some());
}

#[test]
fn removals_go_by_uid_and_by_namespace_and_hostname() {
    let store = store([
        pod("a", "10.0.0.1").resource(),
        service("api", &["10.96.0.1"]).resource(),
    ]);
    store.apply_addresses(&[], &[uid("a"), API.to_owned(), "unknown/name".to_owned()]);
    assert_eq!(store.counts(), crate::Counts::default());
    assert_eq!(store.service_at("10.96.0.1".parse().unwrap(), None), None);
    assert_eq!(
        store.service_named("api.shop.svc.cluster.local", None),
        None
    );
    assert_eq!(store.workload_at("10.0.0.1".parse().unwrap()), None);
}

#[test]
fn what_is_held_can_be_removed_by_its_name_whatever_that_is() {
    let odd = proto::Service {
        namespace: "shop/a".to_owned(),
        ..service("api", &["10.96.0.2"])
    };
    let like_a_service = proto::Workload {
        uid: API.to_owned(),
        ..pod("a", "10.0.0.1")
    };
    let store = store([]);
    let refused = store.apply_addresses(
        &[
            odd.resource(),
            service("api", &["10.96.0.1"]).resource(),
            like_a_service.resource(),
        ],
        &[],
    );
    let refused: Vec<_> = refused.iter().map(|r| &*r.error.field).collect();
    assert_eq!(refused, ["namespace"]);
    assert_eq!(store.held_addresses().count(), 2);
    store.apply_addresses(&[], &[API.to_owned()]);
    assert_eq!(store.held_addresses().count(), 0);
}

#[test]
fn an_address_reused_in_one_push_belongs_to_the_new_pod_whatever_the_order() {
    let store = store([pod("old", "10.0.0.1").resource()]);
    let new = pod("new", "10.0.0.1").resource();
    store.apply_addresses(&[new], &[uid("old")]);
    assert_eq!(
        &*store.workload_at("10.0.0.1".parse().unwrap()).unwrap().name,
        "new"
    );

    store.apply_addresses(&[pod("newer", "10.0.0.1").resource()], &[]);
    assert_eq!(
        &*store.workload_at("10.0.0.1".parse().unwrap()).unwrap().name,
        "newer"
    );
    store.apply_addresses(&[], &[uid("new")]);
    assert_eq!(
        &*store.workload_at("10.0.0.1".parse().unwrap()).unwrap().name,
        "newer"
    );
}

#[test]
fn an_address_that_passes_to_another_pod_is_never_unknown() {
    let store = store([pod("old", "10.0.0.1").resource()]);
    // The new owner of the address is in the last of several batches.
    let mut push: Vec<_> = (0..5000)
        .map(|n| {
            pod(
                &format!("p{n}"),
                &format!("10.1.{}.{}", n / 250, n % 250 + 1),
            )
            .resource()
        })
        .collect();
    push.push(pod("new", "10.0.0.1").resource());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.apply_addresses(&push, &[uid("old")]);
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            assert!(store.workload_at("10.0.0.1".parse().unwrap()).is_some());
        }
    });
    let owner = store.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(&*owner.name, "new");
    assert_eq!(store.workload(&uid("old")), None);
}

#[test]
fn a_workload_that_is_removed_and_pushed_at_once_is_there() {
    let store = store([pod("a", "10.0.0.1").resource()]);
    store.apply_addresses(&[pod("a", "10.0.0.2").resource()], &[uid("a")]);
    assert!(store.workload_at("10.0.0.2".parse().unwrap()).is_some());
}

#[test]
fn a_pod_of_its_own_comes_before_those_on_the_nodes_network() {
    let host = |name| proto::Workload {
        network_mode: 1,
        ..pod(name, "10.0.0.1")
    };
    let store = store([
        pod("own", "10.0.0.1").resource(),
        host("h1").resource(),
        host("h2").resource(),
    ]);
    assert_eq!(
        &*store.workload_at("10.0.0.1".parse().unwrap()).unwrap().name,
        "own"
    );
}

#[test]
fn bad_resources_are_refused_one_by_one_and_the_last_good_version_stays() {
    let store = store([pod("a", "10.0.0.1").resource()]);
    let mut bad = proto::Workload {
        addresses: vec![vec![1]],
        ..pod("a", "10.0.0.9")
    }
    .resource();
    bad.version = "2".to_owned();
    let misnamed = Resource {
        name: "somebody".to_owned(),
        ..pod("c", "10.0.0.3").resource()
    };
    let empty = Resource {
        name: "empty".to_owned(),
        ..Default::default()
    };
    let refused = store.apply_addresses(
        &[bad, pod("b", "10.0.0.2").resource(), misnamed, empty],
        &[],
    );
    let refused: Vec<_> = refused
        .iter()
        .map(|r| (&*r.name, &*r.error.field))
        .collect();
    assert_eq!(
        refused,
        [
            (&*uid("a"), "addresses[0].address"),
            ("somebody", "name"),
            ("empty", "resource")
        ]
    );
    assert!(store.workload_at("10.0.0.1".parse().unwrap()).is_some());
    let mut held: Vec<_> = store.held_addresses().collect();
    held.sort();
    assert_eq!(
        held,
        [(uid("a"), "1".to_owned()), (uid("b"), "1".to_owned())]
    );
}

#[test]
fn the_namespaces_the_global_and_the_listed_policies_apply() {
    let of = |namespace: &str, name: &str, scope: security::Scope| {
        let namespace = namespace.to_owned();
        security::Authorization {
            namespace,
            scope: scope.into(),
            ..policy(name)
        }
        .resource()
    };
    use security::Scope::{Global, Namespace, WorkloadSelector};
    let listing = proto::Workload {
        authorization_policies: vec!["shop/listed".to_owned()],
        ..pod("a", "10.0.0.1")
    };
    let store = store([listing.resource(), pod("b", "10.0.0.2").resource()]);
    store.apply_policies(
        &[
            of("root", "global", Global),
            of("shop", "own", Namespace),
            of("other", "foreign", Namespace),
            of("shop", "listed", WorkloadSelector),
            of("shop", "unlisted", WorkloadSelector),
        ],
        &[],
    );
    let a = names(store.policies_for(&uid("a")));
    assert_eq!(
        a,
        Ok(vec![
            "root/global".into(),
            "shop/own".into(),
            "shop/listed".into()
        ])
    );
    let b = names(store.policies_for(&uid("b")));
    assert_eq!(b, Ok(vec!["root/global".into(), "shop/own".into()]));
    store.apply_policies(&[], &["root/global".to_owned(), "shop/own".to_owned()]);
    assert_eq!(names(store.policies_for(&uid("b"))), Ok(vec![]));
}

/// Those of namespaces judge at the pods.
#[test]
fn a_waypoint_enforces_what_the_service_lists_and_waits_for_what_is_missing() {
    let extension = seine_proto::extensions::ServiceExtension {
        policies: vec!["shop/p_at_api".to_owned()],
        ..Default::default()
    };
    let service = proto::Service {
        extensions: vec![proto::Extension {
            name: "seine.dev/service".into(),
            config: Some(prost_types::Any {
                type_url: String::new(),
                value: extension.encode_to_vec(),
            }),
        }],
        ..service("api", &["10.96.0.1"])
    };
    let store = store([service.resource()]);
    let at_waypoint = || {
        let service = store.services().pop().unwrap();
        names(store.policies_at_waypoint(&service))
    };
    store.apply_policies(&[policy("own").resource()], &[]);
    assert_eq!(at_waypoint(), Err(vec!["shop/p_at_api".to_owned()]));
    store.apply_policies(&[policy("p_at_api").resource()], &[]);
    assert_eq!(at_waypoint(), Ok(vec!["shop/p_at_api".into()]));
}

#[test]
fn policies_that_are_not_known_are_missing_and_never_skipped() {
    let store = Store::new("");
    assert!(
        names(store.policies_for("x")).is_err(),
        "an unknown workload"
    );
    store.apply_addresses(&[pod("a", "10.0.0.1").resource()], &[]);
    let before = names(store.policies_for(&uid("a")));
    assert_eq!(before, Err(vec!["the mesh's policies".to_owned()]));
    store.apply_policies(&[], &[]);
    assert_eq!(names(store.policies_for(&uid("a"))), Ok(vec![]));

    let listing = proto::Workload {
        authorization_policies: vec!["shop/late".to_owned()],
        ..pod("a", "10.0.0.1")
    };
    store.apply_addresses(&[listing.resource()], &[]);
    assert_eq!(
        names(store.policies_for(&uid("a"))),
        Err(vec!["shop/late".to_owned()])
    );
}

#[test]
fn a_refused_policy_counts_as_missing_unless_an_earlier_version_is_in_force() {
    let store = store([pod("a", "10.0.0.1").resource()]);
    let bad = || {
        security::Authorization {
            action: 9,
            ..policy("p")
        }
        .resource()
    };
    assert_eq!(store.apply_policies(&[bad()], &[]).len(), 1);
    assert_eq!(
        names(store.policies_for(&uid("a"))),
        Err(vec!["shop/p".to_owned()])
    );
    assert_eq!(store.held_policies().count(), 0);

    store.apply_policies(&[policy("p").resource()], &[]);
    assert_eq!(
        names(store.policies_for(&uid("a"))),
        Ok(vec!["shop/p".to_owned()])
    );
    assert_eq!(store.apply_policies(&[bad()], &[]).len(), 1);
    assert_eq!(
        names(store.policies_for(&uid("a"))),
        Ok(vec!["shop/p".to_owned()])
    );

    store.apply_policies(&[], &["shop/p".to_owned()]);
    assert_eq!(store.apply_policies(&[bad()], &[]).len(), 1);
    store.apply_policies(&[], &["shop/p".to_owned()]);
    assert_eq!(
        names(store.policies_for(&uid("a"))),
        Ok(vec![]),
        "removed, it restricts nothing"
    );
}

#[test]
fn a_refused_policy_restricts_all_that_it_may_have_been_for_and_does_after_a_restart() {
    let of = |namespace: &str, scope: i32| security::Authorization {
        namespace: namespace.to_owned(),
        scope,
        action: 9,
        ..policy("p")
    };
    let own = security::Scope::Namespace.into();
    let undecodable = |name: &str| {
        let mut resource = of("shop", own).resource();
        resource.name = name.to_owned();
        resource.resource.as_mut().unwrap().value = vec![0xff];
        resource
    };
    let misnamed = Resource {
        name: "somewhere/p".to_owned(),
        ..of("shop", own).resource()
    };
    for (what, refused, applies) in [
        ("of its namespace", of("shop", own).resource(), true),
        ("of another namespace", of("other", own).resource(), false),
        (
            "of the mesh",
            of("other", security::Scope::Global.into()).resource(),
            true,
        ),
        ("of a scope to come", of("other", 7).resource(), true),
        (
            "selected by name",
            of("shop", security::Scope::WorkloadSelector.into()).resource(),
            false,
        ),
        ("not decoded", undecodable("other/p"), true),
        ("not decoded, without a namespace", undecodable("p"), true),
        ("under another name", misnamed, true),
    ] {
        let store = store([pod("a", "10.0.0.1").resource()]);
        let name = refused.name.clone();
        assert_eq!(store.apply_policies(&[refused], &[]).len(), 1, "{what}");
        let expected = if applies { Err(vec![name]) } else { Ok(vec![]) };
        assert_eq!(names(store.policies_for(&uid("a"))), expected, "{what}");

        let restarted = Store::new("");
        assert_eq!(
            restarted.restore(&saved(&store)).unwrap().len(),
            1,
            "{what}"
        );
        assert_eq!(
            names(restarted.policies_for(&uid("a"))),
            expected,
            "{what}, restarted"
        );
        assert_eq!(restarted.held_policies().count(), 0, "{what}");
    }
}

#[test]
fn connections_are_judged_again_after_changes_of_policies_and_of_what_selects_them() {
    let store = store([pod("a", "10.0.0.1").resource()]);
    let mut judged = store.policies_changed();
    let mut any = store.changed();
    let mut expect = |what: &str, again: bool| {
        assert_eq!(judged.has_changed().unwrap(), again, "{what}");
        assert!(any.has_changed().unwrap(), "{what}");
        judged.mark_unchanged();
        any.mark_unchanged();
    };
    store.apply_addresses(&[service("api", &["10.96.0.1"]).resource()], &[]);
    expect("a service", false);
    store.apply_addresses(
        &[proto::Workload {
            status: 1,
            ..pod("a", "10.0.0.1")
        }
        .resource()],
        &[],
    );
    expect("its health", false);
    let selected = proto::Workload {
        authorization_policies: vec!["shop/p".to_owned()],
        ..pod("a", "10.0.0.1")
    };
    store.apply_addresses(&[selected.resource()], &[]);
    expect("a policy selects it", true);
    store.apply_policies(&[policy("p").resource()], &[]);
    expect("a policy", true);
    store.apply_addresses(&[], &[uid("a")]);
    expect("it is gone", true);
    store.apply_addresses(&[pod("a", "10.0.0.1").resource()], &[]);
    expect("it is back", true);
}

#[test]
fn a_bound_port_admits_its_waypoint_at_the_waypoints_address_only() {
    use prost::Message;
    let waypoint = "spiffe://cluster.local/ns/shop/sa/waypoint";
    let bound = seine_proto::extensions::WorkloadExtension {
        bound_ports: vec![seine_proto::extensions::BoundPort {
            target_port: 8080,
            waypoint_identities: vec![waypoint.to_owned()],
        }],
        ..Default::default()
    };
    let config = prost_types::Any {
        type_url: String::new(),
        value: bound.encode_to_vec(),
    };
    let api = proto::Workload {
        extensions: vec![proto::Extension {
            name: "seine.dev/workload".to_owned(),
            config: Some(config),
        }],
        ..pod("a", "10.0.0.1")
    };
    let wp = proto::Workload {
        service_account: "waypoint".to_owned(),
        ..pod("w", "10.0.0.7")
    };
    let store = store([api.resource(), wp.resource()]);
    let api = store.workload(&uid("a")).unwrap();
    let id = waypoint.parse().unwrap();
    let at = |address: &str| address.parse().unwrap();
    assert!(store.admits(&api, 8080, Some(&id), at("10.0.0.7")));
    assert!(
        !store.admits(&api, 8080, Some(&id), at("10.0.0.8")),
        "another address"
    );
    assert!(
        !store.admits(&api, 8080, Some(&api.identity), at("10.0.0.7")),
        "another identity"
    );
    assert!(!store.admits(&api, 8080, None, at("10.0.0.7")), "plaintext");
    assert!(
        store.admits(&api, 9090, None, at("10.0.0.7")),
        "a port that is not bound"
    );
}

#[test]
fn services_of_one_hostname_are_told_apart_by_the_clients_namespace() {
    let of = |namespace: &str, canonical, visibility| {
        proto::Service {
            namespace: namespace.to_owned(),
            hostname: "example.com".to_owned(),
            canonical,
            visibility,
            ..service("x", &["240.0.0.1"])
        }
        .resource()
    };
    let store = store([of("a", false, 0), of("b", true, 0), of("c", false, 1)]);
    let named = |from| {
        store
            .service_named("example.com", from)
            .unwrap()
            .key
            .namespace
            .clone()
    };
    assert_eq!(&*named(Some("a")), "a");
    assert_eq!(&*named(Some("c")), "c");
    assert_eq!(&*named(Some("z")), "b");
    let at = store
        .service_at("240.0.0.1".parse().unwrap(), Some("z"))
        .unwrap();
    assert_eq!(&*at.key.namespace, "b");
}

#[test]
fn a_block_of_addresses_is_found_after_single_ones_and_the_smallest_first() {
    let block = |name: &str, address: &str, length| {
        let mut service = service(name, &[address]);
        service.addresses[0].length = length;
        service.resource()
    };
    let store = store([
        block("wide", "240.0.0.0", Some(8)),
        block("narrow", "240.1.0.0", Some(16)),
        block("one", "240.1.0.1", None),
    ]);
    let at = |a: &str| {
        store
            .service_at(a.parse().unwrap(), None)
            .map(|s| s.name.to_string())
    };
    assert_eq!(at("240.1.0.1").unwrap(), "one");
    assert_eq!(at("240.1.0.2").unwrap(), "narrow");
    assert_eq!(at("240.2.0.2").unwrap(), "wide");
    assert_eq!(at("241.0.0.1"), None);
    store.apply_addresses(&[], &["shop/narrow.shop.svc.cluster.local".to_owned()]);
    assert_eq!(at("240.1.0.2").unwrap(), "wide");
}

#[test]
fn the_last_good_configuration_is_the_same_after_a_restart() {
    let first = store([
        pod("a", "10.0.0.1").resource(),
        pod("b", "10.0.0.2").resource(),
        service("api", &["10.96.0.1"]).resource(),
    ]);
    first.apply_policies(&[policy("p").resource()], &[]);

    let second = Store::new("");
    assert_eq!(second.restore(&saved(&first)).unwrap(), []);
    assert_eq!(second.counts(), first.counts());
    assert_eq!(second.workload(&uid("a")), first.workload(&uid("a")));
    assert_eq!(second.service(&key(API)), first.service(&key(API)));
    assert_eq!(second.policy("shop/p"), first.policy("shop/p"));
    let sorted = |held: Vec<(String, String)>| {
        let mut held = held;
        held.sort();
        held
    };
    assert_eq!(
        sorted(second.held_addresses().collect()),
        sorted(first.held_addresses().collect())
    );
    assert_eq!(
        names(second.policies_for(&uid("a"))),
        Ok(vec!["shop/p".to_owned()])
    );
}

#[test]
fn a_damaged_configuration_is_an_error_and_changes_nothing() {
    let full = saved(&store([pod("a", "10.0.0.1").resource()]));
    for length in [0, 10, full.len() - 1] {
        let store = Store::new("");
        assert!(store.restore(&full[..length]).is_err(), "{length} bytes");
        assert_eq!(store.counts().workloads, 0);
    }
}
