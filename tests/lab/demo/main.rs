//! The demo: a shop of nginx, an API, PostgreSQL and Redis on two nodes, before it opts in to
//! the mesh and after. Each claim is checked; the exit status is 0 only if all hold.

#![forbid(unsafe_code)]

mod measure;
mod shop;
mod traces;
mod transcript;
mod waypoint;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use seine_lab::protocol::Component;
use seine_lab::{Lab, Options};

use measure::Figures;
use shop::Shop;
use transcript::Transcript;

/// How long the demo may take, without the build.
const LONGEST: Duration = Duration::from_secs(180);
/// Connections of one load at a time.
const WORKERS: u32 = 16;

fn main() -> ExitCode {
    if std::env::args()
        .nth(1)
        .is_some_and(|word| word == traces::COLLECT)
    {
        return traces::collect();
    }
    let mut transcript = Transcript::default();
    let begun = Instant::now();
    if let Err(error) = run(&mut transcript) {
        transcript.broke(&error);
    }
    let took = begun.elapsed();
    transcript.claim("all of this within three minutes", took < LONGEST, || {
        format!("it took {took:.0?}")
    });
    transcript.end(took)
}

fn run(t: &mut Transcript) -> Result<()> {
    let name = std::env::var("SEINE_LAB_NAME").unwrap_or_else(|_| "demo".to_owned());
    t.title("A shop on two nodes, not in the mesh yet");
    t.say("web (nginx) and api on node1; postgres, redis and a customer on node2;");
    t.say("each a pod with its own service account: tests/lab/demo/*.yaml");
    let mut options = Options::new(name);
    options
        .environment
        .push(("SEINE_LOG".to_owned(), "info".to_owned()));
    options.environment.extend(traces::environment());
    let lab = Lab::up(
        &options,
        &(shop::MANIFESTS.to_owned() + &traces::manifests()?),
    )?;
    let shop = Shop::new(&lab)?;
    let result = story(t, &lab, &shop);
    if result.is_err() || t.failed() {
        t.logs(&lab);
    }
    let ended = lab.down();
    result?;
    ended.context("ending the lab")
}

fn story(t: &mut Transcript, lab: &Lab, shop: &Shop<'_>) -> Result<()> {
    let before = shop.capture_order("sourdough-in-the-open")?;
    t.claim(
        "an order goes through web, api, postgres and redis",
        before.order.is_ok(),
        || before.said(),
    );
    t.claim(
        "on the wire between the nodes stand PostgreSQL's password and the order",
        before.shows_password() && before.shows_item_to_postgres(),
        || before.summary(),
    );
    let direct = Figures::measure(lab).context("measuring without the mesh")?;

    t.title("It opts in by one label on the namespace: seine.dev/mesh=enabled");
    lab.apply(shop::OPT_IN)?;
    let restarts = shop.restarts()?;
    let joined = shop.await_mesh();
    t.claim("the running pods are in the mesh", joined.is_ok(), || {
        format!("{joined:?}")
    });
    let after = shop.capture_order("sourdough-in-the-mesh")?;
    t.claim(
        "an order goes through all of them as before",
        after.order.is_ok(),
        || after.said(),
    );
    t.claim(
        "no pod was restarted for it",
        shop.restarts()? == restarts,
        || "restarts were counted".to_owned(),
    );
    t.claim(
        "the same capture shows neither password nor order",
        !after.shows_password() && !after.shows_item() && !after.is_empty(),
        || after.summary(),
    );
    t.claim(
        "what it shows is TLS on port 15008, and nothing on PostgreSQL's or Redis' port",
        after.is_mesh_only(),
        || after.summary(),
    );
    t.say(&after.summary());

    t.title("Each connection has two identities, checked on both sides (ztunnel's access log)");
    for edge in shop::EDGES {
        let missing = shop.missing_ends(edge)?;
        t.claim(
            &format!(
                "{} -> {}",
                shop::identity(edge.from),
                shop::identity(edge.to)
            ),
            missing.is_empty(),
            || format!("no such line: {}", missing.join(", ")),
        );
    }

    t.title("A policy, applied live: only the api may speak to postgres");
    let open = shop.psql_from_web()?;
    t.claim(
        "before it, the front end can log in to postgres",
        open.code == 0,
        || open.stderr.clone(),
    );
    lab.apply(shop::ONLY_API)?;
    let refused = shop.await_refusal()?;
    t.claim("the front end is refused", refused.code != 0, || {
        refused.stdout.clone()
    });
    t.say(&format!("psql in web: {}", refused.stderr.trim()));
    let reason = shop.find_denial("web")?;
    t.claim(
        "ztunnel on node2 logged who was refused and by which policy",
        reason
            .as_ref()
            .is_some_and(|line| line.contains("postgres-only-api")),
        || format!("{reason:?}"),
    );
    t.say(&reason.unwrap_or_default());
    let order = shop.order("rye");
    t.claim("the api still can", order.is_ok(), || format!("{order:?}"));

    t.title("Both ztunnels are replaced under load");
    let mut load = shop.start_load(WORKERS)?;
    let mut meanwhile = Vec::new();
    for node in [1, 2] {
        let before = load.answers()?;
        lab.restart(Component::Ztunnel, node)?;
        meanwhile.push(load.answers()? - before);
    }
    let result = load.finish()?;
    t.claim(
        &format!("{} new connections, none refused, none failed", result.ok),
        result.ok > 100 && result.failed.is_empty(),
        || result.failed.join("; "),
    );
    t.claim(
        "the load went on during both",
        meanwhile.iter().all(|&answers| answers > 0),
        || format!("answers during each: {meanwhile:?}"),
    );
    let generations = shop.ztunnel_generations()?;
    t.claim("each node has a new ztunnel", generations == [2, 2], || {
        format!("{generations:?}")
    });

    waypoint::act(t, lab)?;

    t.title("What it costs, on this machine, between the nodes");
    let meshed = Figures::measure(lab).context("measuring in the mesh")?;
    t.claim(
        "both were measured",
        direct.plausible() && meshed.plausible(),
        || format!("{direct:?} {meshed:?}"),
    );
    t.say(&direct.beside(&meshed));
    Ok(())
}
