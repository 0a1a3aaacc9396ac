//! The act of the waypoint: what the L7 proxy does with the requests to the API.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use seine_lab::Lab;

use crate::traces::{self, Span};
use crate::transcript::Transcript;

const NAMESPACE: &str = "shop";
/// The waypoint, the new version of the API.
const WAYPOINT: &str = include_str!("steps/waypoint.yaml");
/// Routes and policy.
const ROUTES: &str = include_str!("steps/routes.yaml");
/// A trace that the customer has begun, and its span there.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CUSTOMERS_SPAN: &str = "b7ad6b7169203331";
/// The longest that a change of configuration may take to be seen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Orders to see a share by: that none of 60 is of a fifth happens once in 600,000 times.
const ORDERS: usize = 60;

/// Plays the act.
pub(crate) fn act(t: &mut Transcript, lab: &Lab) -> Result<()> {
    t.title("A waypoint for the API: requests are routed and judged one by one");
    lab.apply(WAYPOINT)?;
    lab.apply(ROUTES)?;
    let customer = Customer { lab };
    let answer = customer.await_new("bread")?;
    t.claim(
        "whoever asks for version 2, by a header, is answered by it",
        answer.contains("\"version\": 2"),
        || answer.clone(),
    );
    let new = customer.share_of_new(ORDERS)?;
    t.claim(
        "of the other orders a share is, as the route's weights say (80 to 20)",
        (1..ORDERS / 2).contains(&new),
        || format!("{new} of {ORDERS}"),
    );
    t.say(&format!("{new} of {ORDERS} orders went to version 2"));

    let refused = customer.ask(&["-X", "DELETE", "http://web/order"])?;
    t.claim(
        "DELETE is refused with 403",
        refused.status == "403",
        || format!("{refused:?}"),
    );
    let line = find(lab, &["method=DELETE", "status=403"])?;
    t.claim(
        "the waypoint logged who, what and by which policy",
        ["policy=shop/no-delete_at_api", "sa/web"]
            .iter()
            .all(|part| line.contains(part)),
        || line.clone(),
    );
    t.say(&line);

    let saved = customer.order("fragile-cake", true)?;
    t.claim(
        "a request that the new version dropped was sent again, and the customer saw nothing of it",
        saved.status == "200" && saved.body.contains("fragile-cake"),
        || format!("{saved:?}"),
    );
    let line = find(lab, &["path=/order", "retries=1", "status=200"])?;
    t.claim(
        "the waypoint logged one retry, under the rule that asked for it",
        line.contains("HTTPRoute/shop/api/0 (testers)"),
        || line.clone(),
    );
    t.say(&line);
    trace(t, lab, &customer)
}

/// One trace of an order that was sent twice: the customer's, of whom it comes in, and what each proxy on its way adds.
fn trace(t: &mut Transcript, lab: &Lab, customer: &Customer<'_>) -> Result<()> {
    let context = format!("traceparent: 00-{TRACE}-{CUSTOMERS_SPAN}-01");
    let url = "http://web/order?item=fragile-pie";
    let answer = customer.ask(&["-H", "x-version: 2", "-H", &context, url])?;
    let spans = traces::of_trace(lab, TRACE, |spans| Hops::of(spans).is_some())?;
    let hops = Hops::of(&spans);
    t.claim(
        "a trace spans the hops: the waypoint's span within the customer's, and within that each attempt at the API",
        answer.status == "200" && hops.is_some(),
        || format!("{answer:?} {spans:#?}"),
    );
    t.say(&hops.map(|hops| hops.to_string()).unwrap_or_default());
    Ok(())
}

/// The spans of a trace by where they are in it.
struct Hops<'a> {
    request: &'a Span,
    attempts: Vec<&'a Span>,
}

impl<'a> Hops<'a> {
    /// All that there should be: the waypoint's span of the request, and two attempts at the API.
    fn of(spans: &'a [Span]) -> Option<Self> {
        let mut requests = spans.iter();
        let request = requests.find(|span| span.get("parent") == CUSTOMERS_SPAN)?;
        let within = |span: &&Span| span.get("parent") == request.get("id");
        let mut attempts: Vec<_> = spans.iter().filter(within).collect();
        attempts.sort_by_key(|span| span.get("http.request.resend_count"));
        (attempts.len() == 2).then_some(Self { request, attempts })
    }
}

impl fmt::Display for Hops<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = |span: &Span| span.get("http.response.status_code").to_owned();
        let Self { request, attempts } = self;
        let (id, path, rule) = (
            request.get("id"),
            request.get("url.path"),
            request.get("seine.route"),
        );
        writeln!(f, "{CUSTOMERS_SPAN}  customer")?;
        writeln!(f, "└ {id}  waypoint: {path} {} by {rule}", status(request))?;
        for attempt in attempts {
            let (id, peer) = (attempt.get("id"), attempt.get("network.peer.address"));
            writeln!(f, "  └ {id}  attempt at {peer}: {}", status(attempt))?;
        }
        Ok(())
    }
}

/// Who asks, through the front end.
struct Customer<'a> {
    lab: &'a Lab,
}

#[derive(Debug)]
struct Answer {
    status: String,
    body: String,
}

impl Customer<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<Answer> {
        let mut curl = vec!["curl", "-sS", "--max-time", "15", "-w", "\n%{http_code}"];
        curl.extend(arguments);
        let output = self.lab.exec(NAMESPACE, "customer", &curl)?;
        let (body, status) = output
            .stdout
            .rsplit_once('\n')
            .context("curl said nothing")?;
        Ok(Answer {
            status: status.to_owned(),
            body: body.to_owned(),
        })
    }

    fn order(&self, item: &str, of_new: bool) -> Result<Answer> {
        let url = format!("http://web/order?item={item}");
        match of_new {
            true => self.ask(&["-H", "x-version: 2", &url]),
            false => self.ask(&[&url]),
        }
    }

    /// Orders until the new version answers, or long enough; the last answer.
    fn await_new(&self, item: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.order(item, true)?;
            if answer.body.contains("version") || Instant::now() > deadline {
                return Ok(answer.body);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Of so many orders, how many the new version has answered. All must be answered.
    fn share_of_new(&self, orders: usize) -> Result<usize> {
        let mut new = 0;
        for number in 0..orders {
            let answer = self.order(&format!("roll-{number}"), false)?;
            if answer.status != "200" {
                bail!("order {number}: {answer:?}");
            }
            new += usize::from(answer.body.contains("\"version\": 2"));
        }
        Ok(new)
    }
}

/// The line of the waypoint's log that has all of these.
fn find(lab: &Lab, needles: &[&str]) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pods = lab.status()?.pods;
        let waypoint = pods
            .into_iter()
            .find(|pod| pod.name.starts_with("waypoint-"));
        let waypoint = waypoint.context("there is no waypoint")?;
        let log = lab.pod_logs(NAMESPACE, &waypoint.name)?;
        let mut lines = log.lines();
        let found = lines.find(|line| needles.iter().all(|needle| line.contains(needle)));
        match found {
            Some(line) => return Ok(line.to_owned()),
            None if Instant::now() > deadline => bail!("the waypoint logged no {needles:?}"),
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
