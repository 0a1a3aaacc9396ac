//! Agents that come and go, pods that come and go, and what is repaired.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use seine_agent::redirect::{
    InboundListeners, OlderConnections, PodNetns, Redirect, RedirectError,
};

use crate::{
    client::{PATIENCE, ask, read, word},
    process::{Netns, Process},
    world::{OUTSIDE4, POD4, SERVER, World, world},
};

const CAUGHT: &str = "caught to 10.9.2.2:7000";
const DIRECT: &str = "outside at 10.9.2.2:7000 for 10.9.1.2";

#[test]
fn the_canary_sings_and_falls_silent_when_a_hook_is_missing() {
    world(|world| {
        // The agent's own cgroup matters: accepted sockets belong to the maker of the listener.
        let canary = |world: &World, cgroup: &str| {
            Process::call(&world.cgroup(cgroup), &world.node, || {
                world
                    .redirect()
                    .canary()
                    .map_or_else(|error| error.to_string(), |()| "sings".into())
            })
        };
        assert_eq!(canary(world, "kubepods/agent"), "sings");
        assert_eq!(world.redirect().enrolled().unwrap(), []);
        let outside = canary(world, "kubelet");
        assert!(outside.contains("the agent's own cgroup"), "{outside}");
        fs::remove_file(world.bpffs.join("seine/links/catch_connect4")).unwrap();
        let missing = canary(world, "kubepods/agent");
        assert!(missing.contains("did not arrive"), "{missing}");
        let repairs = world.redirect().reconcile().unwrap();
        assert_eq!(
            repairs.repaired,
            ["program catch_connect4 was missing and has been attached"]
        );
        assert_eq!(canary(world, "kubepods/agent"), "sings");
        assert_eq!(world.redirect().reconcile().unwrap(), Default::default());
    });
}

#[test]
fn a_new_agent_takes_over_without_a_connection_getting_past() {
    world(|world| {
        let (cookie, _proxy) = world.meshed();
        let before = world.programs();
        let mut client = Process::start(&world.cgroup("kubepods/pod"), &world.pod, |output| {
            let mut counted = 0;
            let mut wrong = String::new();
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                let answer = ask((OUTSIDE4, SERVER));
                counted += 1;
                if answer != CAUGHT {
                    wrong = answer;
                }
            }
            writeln!(output, "{} {wrong}", counted > 10).unwrap();
        });
        for _ in 0..3 {
            world.load();
        }
        assert_eq!(client.line(), "true ");
        assert_ne!(world.programs(), before);
        let pods = world.redirect().enrolled().unwrap();
        assert_eq!(pods.len(), 1);
        assert_eq!((pods[0].cookie, pods[0].ipv4), (cookie, Some(POD4)));
        assert!(pods[0].steered && pods[0].guarded_ifindexes.contains(&world.veth));
    });
}

#[test]
fn with_the_agent_gone_a_pod_stays_enrolled() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        world.redirect = None;
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), CAUGHT);
        let inbound = world.outside(|| ask((POD4, 8080)));
        assert_eq!(inbound, "inbound at 10.9.1.2:8080 for 10.9.2.2");
    });
}

#[test]
fn maps_of_another_schema_are_refused_untouched() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        world.redirect = None;
        let meta = world.bpffs.join("seine/maps/META");
        let map = aya::maps::MapData::from_pin(&meta).unwrap();
        let mut map: aya::maps::Array<_, [u32; 4]> = aya::maps::Map::from_map_data(map)
            .unwrap()
            .try_into()
            .unwrap();
        map.set(0, [99, 0, 0, 0], 0).unwrap();
        let error = Redirect::load(world.config()).unwrap_err();
        assert!(
            matches!(error, RedirectError::Schema { found: 99, .. }),
            "{error}"
        );
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), CAUGHT);
        map.set(0, [seine_bpf_common::SCHEMA, 0, 0, 0], 0).unwrap();
        world.load();
    });
}

#[test]
fn a_map_of_another_shape_is_refused() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        world.redirect = None;
        let maps = world.bpffs.join("seine/maps");
        fs::rename(maps.join("ENROLLED"), maps.join("kept")).unwrap();
        fs::hard_link(maps.join("PORTS"), maps.join("ENROLLED")).unwrap();
        let error = Redirect::load(world.config()).unwrap_err();
        assert!(
            matches!(&error, RedirectError::ForeignMap { path, .. } if path.ends_with("ENROLLED")),
            "{error}"
        );
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), CAUGHT);
        fs::rename(maps.join("kept"), maps.join("ENROLLED")).unwrap();
        world.load();
    });
}

#[test]
fn a_take_over_that_fails_half_way_leaves_every_link_with_the_old_program() {
    world(|world| {
        let (cookie, _proxy) = world.meshed();
        let links = world.bpffs.join("seine/links");
        let steer = world.bpffs.join(format!("seine/pods/{cookie:016x}/steer"));
        // The last link of the node, and one of a pod, which comes after all of those.
        for broken in [links.join("catch_connect6"), steer] {
            let running = |world: &World| {
                let status = world.redirect().status().unwrap();
                let programs = status
                    .attachments
                    .iter()
                    .map(|a| (a.program.clone(), a.program_id));
                programs.collect::<Vec<_>>()
            };
            let before = running(world);
            let kept = world.bpffs.join("kept");
            fs::rename(&broken, &kept).unwrap();
            // Not to be opened as a link.
            fs::create_dir(&broken).unwrap();
            let error = Redirect::load(world.config()).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EACCES), "{error}");
            fs::remove_dir(&broken).unwrap();
            fs::rename(&kept, &broken).unwrap();
            assert_eq!(running(world), before);
            assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), CAUGHT);
            world.load();
            assert_ne!(running(world), before, "its twin, with nothing in the way");
        }
    });
}

/// Maps outlive agents: one whose map has changed here needs another schema version, under which this list
/// is then kept too.
#[test]
fn the_maps_are_those_of_this_schema_version() {
    assert_eq!(
        seine_bpf_common::SCHEMA,
        1,
        "a new version has a list of its own beside this one"
    );
    let expected = include_str!("maps-of-schema-1.txt");
    world(move |world| {
        let mut found = String::new();
        let mut entries: Vec<_> = fs::read_dir(world.bpffs.join("seine/maps"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            let info = aya::maps::MapInfo::from_pin(&path).unwrap();
            writeln!(
                found,
                "{} {:?} key {} value {} entries {} flags {:#x}",
                path.file_name().unwrap().to_str().unwrap(),
                info.map_type().unwrap(),
                info.key_size(),
                info.value_size(),
                info.max_entries(),
                info.map_flags(),
            )
            .unwrap();
        }
        assert_eq!(found, expected, "raise SCHEMA");
    });
}

#[test]
fn a_released_pod_goes_its_own_way_and_may_come_back() {
    world(|world| {
        let (cookie, _proxy) = world.meshed();
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), CAUGHT);
        world.redirect().release(cookie).unwrap();
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), DIRECT);
        let inbound = world.outside(|| ask((POD4, 8080)));
        assert_eq!(inbound, "app at 10.9.1.2:8080 for 10.9.2.2");
        assert_eq!(world.redirect().enrolled().unwrap(), []);
        world.redirect().release(cookie).unwrap();
        let settings = world.settings();
        assert_eq!(
            world.enrol(&settings, OlderConnections::Leave).cookie,
            cookie
        );
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), CAUGHT);
    });
}

#[test]
fn the_hosts_netns_is_refused() {
    world(|world| {
        let settings = world.settings();
        let refused = world.redirect().enrol(PodNetns {
            netns: world.node.fd(),
            settings: &settings,
            inbound: InboundListeners::default(),
            older_connections: OlderConnections::Leave,
        });
        assert!(matches!(refused, Err(RedirectError::Refused(_))));
        // In a sandbox, the machine's first process may be out of sight.
        let Ok(first) = fs::File::open("/proc/1/ns/net") else {
            return;
        };
        let refused = world.redirect().enrol(PodNetns {
            netns: first.as_fd(),
            settings: &settings,
            inbound: InboundListeners::default(),
            older_connections: OlderConnections::Leave,
        });
        assert!(matches!(refused, Err(RedirectError::Refused(_))));
        assert_eq!(world.redirect().enrolled().unwrap(), []);
    });
}

#[test]
fn a_pod_whose_netns_is_gone_is_forgotten() {
    world(|world| {
        let gone = Netns::new();
        let settings = seine_agent::redirect::PodSettings::default();
        let enrolled = world
            .redirect()
            .enrol(PodNetns {
                netns: gone.fd(),
                settings: &settings,
                inbound: InboundListeners::default(),
                older_connections: OlderConnections::Leave,
            })
            .unwrap();
        assert!(world.redirect().reconcile().unwrap().vanished.is_empty());
        drop(gone);
        let mut vanished = Vec::new();
        for _ in 0..100 {
            vanished = world.redirect().reconcile().unwrap().vanished;
            if !vanished.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(vanished, [enrolled.cookie]);
        assert_eq!(world.redirect().enrolled().unwrap(), []);
    });
}

#[test]
fn connections_older_than_the_enrolment_are_counted_and_reset_or_left() {
    for policy in [OlderConnections::Leave, OlderConnections::Reset] {
        world(move |world| {
            let mut server = Process::start(&world.base, &world.outside, |output| {
                let listener = std::net::TcpListener::bind((OUTSIDE4, 7100)).unwrap();
                writeln!(output, "listening").unwrap();
                let (mut stream, _) = listener.accept().unwrap();
                std::thread::sleep(Duration::from_secs(1));
                let _ = stream.write_all(b"older");
            });
            assert_eq!(server.line(), "listening");
            let mut client = Process::start(&world.cgroup("kubepods/pod"), &world.pod, |output| {
                let to = SocketAddr::from((OUTSIDE4, 7100));
                let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                writeln!(output, "connected").unwrap();
                writeln!(output, "{}", read(stream).unwrap_or_else(word)).unwrap();
            });
            assert_eq!(client.line(), "connected");
            let settings = world.settings();
            let enrolment = world.enrol(&settings, policy);
            assert_eq!(enrolment.older_found, 1);
            if policy == OlderConnections::Reset {
                assert_eq!(enrolment.older_reset, 1);
                assert_eq!(client.line(), "ConnectionAborted");
            } else {
                assert_eq!(enrolment.older_reset, 0);
                assert_eq!(client.line(), "older");
            }
            drop(server);
        });
    }
}

#[test]
fn an_uninstall_leaves_nothing() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        world.redirect.take().unwrap().uninstall().unwrap();
        assert!(!world.bpffs.join("seine").exists());
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), DIRECT);
        world.load();
        assert_eq!(world.redirect().enrolled().unwrap(), []);
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), DIRECT);
    });
}

#[test]
fn cgroups_that_would_catch_nothing_or_trust_anyone_are_refused() {
    world(|world| {
        let refused = |config| {
            let error = Redirect::load(config).unwrap_err();
            assert!(matches!(error, RedirectError::Cgroup { .. }), "{error}");
        };
        let mut config = world.config();
        config.pods_cgroup = "/tmp".into();
        refused(config);
        let mut config = world.config();
        config.kubelet_cgroup = Some(world.base.clone());
        refused(config);
        let mut config = world.config();
        config.ztunnel_cgroups = vec![world.cgroup("kubelet")];
        refused(config);
    });
}

#[test]
fn what_is_not_wanted_any_more_is_detached() {
    world(|world| {
        let mut settings = world.settings();
        settings.probed_ports.insert(8080);
        let (_, _proxy) = world.meshed_with(&settings);
        let probe = |world: &World| {
            Process::call(&world.cgroup("kubelet"), &world.node, || ask((POD4, 8080)))
        };
        assert_eq!(probe(world), "app at 10.9.1.2:8080 for 10.9.1.1");
        let mut config = world.config();
        config.kubelet_cgroup = None;
        world.redirect = None;
        world.redirect = Some(Redirect::load(config).unwrap());
        assert_eq!(probe(world), "inbound at 10.9.1.2:8080 for 10.9.1.1");
        assert!(!world.bpffs.join("seine/links/watch_kubelet").exists());
    });
}

#[test]
fn listeners_may_be_replaced_under_a_live_pod() {
    world(|world| {
        let (cookie, proxy) = world.meshed();
        let inbound = |world: &World| world.outside(|| ask((POD4, 8080)));
        let steered = "inbound at 10.9.1.2:8080 for 10.9.2.2";
        assert_eq!(inbound(world), steered);
        // Without one, refused; never past the proxy.
        world
            .redirect()
            .set_listeners(cookie, InboundListeners::default())
            .unwrap();
        assert_eq!(inbound(world), "ConnectionRefused");
        drop(proxy);
        world.listeners = None;
        let settings = world.settings();
        let (again, _proxy) = world.meshed_with(&settings);
        assert_eq!(again, cookie);
        assert_eq!(inbound(world), steered);
        let missing = world
            .redirect()
            .set_listeners(1, InboundListeners::default());
        assert!(matches!(missing, Err(RedirectError::NotEnrolled(1))));
    });
}
