//! `ReferenceGrant`: which routes of other namespaces may lead to a namespace's services, and which Gateways may have
//! its certificates.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{GROUP, ParentRef};
use crate::{ObjectKey, ObjectSet};

/// What others may refer to in its namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceGrant {
    /// That of its version.
    pub api_version: String,
    /// `ReferenceGrant`.
    pub kind: String,
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is granted to whom.
    pub spec: ReferenceGrantSpec,
}

/// Each of `from` may refer to each of `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceGrantSpec {
    /// Who.
    pub from: Vec<Grantee>,
    /// To what.
    pub to: Vec<Target>,
}

/// All objects of a kind in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grantee {
    /// Its API group; the core group is empty.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
}

/// All objects of a kind in the grant's namespace, or one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its API group; the core group is empty.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// By default each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ObjectSet {
    /// Whether a route of this kind and these parents in this namespace may lead to a service. It may, without a grant, if the
    /// service is its only parent: a consumer's route leads on where its clients went anyway.
    pub fn may_refer(
        &self,
        kind: &str,
        namespace: &str,
        parents: &[ParentRef],
        service: &ObjectKey,
    ) -> bool {
        let only_parent = !parents.is_empty()
            && (parents.iter())
                .all(|parent| parent.service(namespace).is_some_and(|of| of == *service));
        if only_parent {
            return true;
        }
        self.is_granted(kind, namespace, "Service", service)
    }

    /// Whether objects of a kind of the Gateway API in this namespace may refer to an object of a kind of the core group: it is
    /// of the same namespace, or a grant says so.
    pub fn is_granted(&self, kind: &str, namespace: &str, of: &str, object: &ObjectKey) -> bool {
        if object.namespace == namespace {
            return true;
        }
        let from = |from: &Grantee| {
            (&*from.group, &*from.kind, &*from.namespace) == (GROUP, kind, namespace)
        };
        let to = |to: &Target| {
            let named = to.name.as_deref().filter(|name| !name.is_empty());
            (&*to.group, &*to.kind) == ("", of) && named.is_none_or(|name| name == object.name)
        };
        let mut grants = self.reference_grants.iter();
        grants.any(|(key, grant)| {
            key.namespace == object.namespace
                && grant.spec.from.iter().any(from)
                && grant.spec.to.iter().any(to)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_of_its_own_namespace_and_for_what_it_names_alone() {
        let grant = |spec: &str| {
            let yaml = format!(
                "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\nspec: {spec}\n"
            );
            let (set, problems) = ObjectSet::from_yaml(&yaml);
            assert_eq!(problems, []);
            set.may_refer("HTTPRoute", "team", &[], &ObjectKey::new("shop", "web"))
        };
        let from = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: team}";
        let all = "{group: '', kind: Service}";
        for (from, to, granted) in [
            (from, all, true),
            (from, "{kind: Service, name: web}", true),
            (from, "{kind: Service, name: db}", false),
            (from, "{group: a, kind: Service}", false),
            (from, "{kind: Secret}", false),
            (&*from.replace("team", "other"), all, false),
            (&*from.replace("HTTPRoute", "GRPCRoute"), all, false),
            (
                &*from.replace("gateway.networking.k8s.io", "''"),
                all,
                false,
            ),
        ] {
            let spec = format!("{{from: [{from}], to: [{to}]}}");
            assert_eq!(grant(&spec), granted, "{spec}");
        }
        let none = ObjectSet::default();
        assert!(none.may_refer("HTTPRoute", "shop", &[], &ObjectKey::new("shop", "web")));
        assert!(!none.may_refer("HTTPRoute", "team", &[], &ObjectKey::new("shop", "web")));
    }

    #[test]
    fn a_consumer_s_route_may_lead_to_the_service_that_is_its_only_parent() {
        let parent = |group: &str, kind: &str, namespace: Option<&str>, name: &str| ParentRef {
            group: Some(group.into()),
            kind: Some(kind.into()),
            namespace: namespace.map(str::to_owned),
            name: name.into(),
            ..ParentRef::default()
        };
        let web = || parent("", "Service", Some("shop"), "web");
        let may = |parents: &[ParentRef]| {
            let web = ObjectKey::new("shop", "web");
            ObjectSet::default().may_refer("HTTPRoute", "team", parents, &web)
        };
        assert!(may(&[web()]) && may(&[web(), web()]));
        for other in [
            parent("", "Service", Some("shop"), "db"),
            parent("", "Service", None, "web"),
            parent(GROUP, "Gateway", Some("shop"), "web"),
        ] {
            assert!(!may(std::slice::from_ref(&other)) && !may(&[web(), other]));
        }
    }
}
