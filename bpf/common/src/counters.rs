//! What the programs count: the elements of the per-CPU map `COUNTERS`.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// An element of map `COUNTERS`. Numbers are part of the schema: append, never reorder.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All counters, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The counter's name as metrics and the admin API show it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Outbound TCP connections handed to the proxy, IPv4.
    CaughtIpv4 = "caught_ipv4",
    /// Outbound TCP connections handed to the proxy, IPv6.
    CaughtIpv6 = "caught_ipv6",
    /// Outbound connections left alone by an excluded port or network.
    ExcludedOut = "excluded_out",
    /// DNS queries (connects and unconnected sends) handed to the proxy.
    DnsCaught = "dns_caught",
    /// Connections of the proxy itself in enrolled pods.
    ProxyDials = "proxy_dials",
    /// Accepted by the proxy's listener with their original destination.
    OriginalsHanded = "originals_handed",
    /// Accepted on the outbound port without a known original destination.
    OriginalsMissing = "originals_missing",
    /// The tuple map refused an entry.
    TuplesFull = "tuples_full",
    /// Inbound connections steered to the proxy's plaintext listener.
    Steered = "steered",
    /// Inbound connections refused since the pod has no listener of the proxy.
    SteeredNowhere = "steered_nowhere",
    /// Inbound connections that are the proxy's own dials to the application.
    DialsPassed = "dials_passed",
    /// Probes of the kubelet passed to the application.
    ProbesPassed = "probes_passed",
    /// Inbound connections left alone by an excluded port or network.
    ExcludedIn = "excluded_in",
    /// The guard: connection attempts that the proxy did not make.
    GuardDroppedSyn = "guard_dropped_syn",
    /// The guard: fragments of TCP segments.
    GuardDroppedFragment = "guard_dropped_fragment",
    /// The guard: IPv6 extension headers beyond the bound, or not understood.
    GuardDroppedExtension = "guard_dropped_extension",
    /// The guard: headers cut short, or under a second VLAN tag.
    GuardDroppedMalformed = "guard_dropped_malformed",
    /// The guard: connection attempts of the proxy, passed.
    GuardPassedProxy = "guard_passed_proxy",
    /// The guard: connection attempts passed by an excluded port or network.
    GuardPassedExcluded = "guard_passed_excluded",
    /// The guard: UDP of a pod whose setting drops it.
    GuardDroppedUdp = "guard_dropped_udp",
}
