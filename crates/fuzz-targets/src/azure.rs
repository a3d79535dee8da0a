//! Answers of Azure DevOps, and what is read out of them.

use std::{collections::BTreeSet, time::Duration};

use azure_devops::{
    Class, TaskAgent, TaskAgentJobRequest, TaskAgentPool,
    decode::{self, Head},
};
use operator::decode::agent_pool;
use planner::{Capabilities, Demand, Pool, Profile};
use reqwest::{
    StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};

/// Longest wait that the service is taken at its word for.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// A list of agents: none gets lost, doubled or renamed on the way to the planner.
pub(crate) fn agents(data: &[u8]) {
    let Ok(agents) = decode::page::<TaskAgent>("fuzz", data) else {
        return;
    };
    let read = agent_pool(agents.clone(), Vec::new()).registrations;
    assert_eq!(agents.len(), read.len());
    for (agent, registration) in agents.iter().zip(&read) {
        assert_eq!(
            (agent.id, &agent.name),
            (registration.id, &registration.name)
        );
        let holds = agent.assigned_request.as_ref();
        let unfinished = holds.filter(|request| request.result.is_none());
        assert_eq!(
            unfinished.map(|request| request.request_id),
            registration.assigned
        );
    }
}

/// A list of job requests: each is kept, with its demands and its agent.
pub(crate) fn job_requests(data: &[u8]) {
    let Ok(requests) = decode::page::<TaskAgentJobRequest>("fuzz", data) else {
        return;
    };
    let read = agent_pool(Vec::new(), requests.clone()).requests;
    assert_eq!(requests.len(), read.len());
    for (request, read) in requests.iter().zip(&read) {
        let agent = request.reserved_agent.as_ref().map(|agent| agent.id);
        assert_eq!(
            (request.request_id, &request.demands, agent),
            (read.id, &read.demands, read.reserved_agent)
        );
        for demand in &read.demands {
            let _ = Demand::parse(demand);
        }
    }
}

/// A list of agent pools.
pub(crate) fn agent_pools(data: &[u8]) {
    let _ = decode::page::<TaskAgentPool>("fuzz", data);
}

/// A whole answer: a line with the status, lines of headers, an empty line, the body.
pub(crate) fn answers(data: &[u8]) {
    let mut lines = data.split_inclusive(|byte| *byte == b'\n');
    let status = lines.next().and_then(text).and_then(|text| {
        let code = text.trim().parse().ok()?;
        StatusCode::from_u16(code).ok()
    });
    let Some(status) = status else { return };
    let mut headers = HeaderMap::new();
    let mut body = Vec::new();
    let mut in_head = true;
    for line in lines {
        if !in_head {
            body.extend_from_slice(line);
        } else if line == b"\n" {
            in_head = false;
        } else if let Some((name, value)) = header(line) {
            headers.append(name, value);
        }
    }
    let head = decode::head(status, &headers, body.is_empty());
    assert_eq!(head == Head::Throttled, status.as_u16() == 429);
    assert!(
        head != Head::Readable || status.is_success(),
        "only what succeeded is read"
    );
    let wait = decode::retry_after(&headers);
    assert!(wait.is_none_or(|wait| !wait.is_zero() && wait <= LONGEST_WAIT));
    let _ = decode::rate_limit(&headers);
    let error = decode::refusal("fuzz", status, &body);
    let unauthorized = matches!(status.as_u16(), 401 | 403);
    assert_eq!(error.class() == Class::Unauthorized, unauthorized);
    assert!(error.to_string().starts_with("fuzz: "));
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..)?.trim_ascii_start();
    Some((
        HeaderName::from_bytes(name).ok()?,
        HeaderValue::from_bytes(value).ok()?,
    ))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A demand and, a line each, capabilities as `name=value`: neither case nor blanks around it change whether it is met.
pub(crate) fn demands(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let mut lines = text.lines();
    let demand = lines.next().unwrap_or_default();
    let pairs = lines.filter_map(|line| line.split_once('='));
    let capabilities: Capabilities = pairs.clone().collect();
    let parsed = Demand::parse(demand);
    let met = parsed.is_met_by(&capabilities);
    assert!(!met || parsed.name().is_some_and(|name| capabilities.has(name)));
    let shouting = demand.to_ascii_uppercase();
    assert_eq!(met, Demand::parse(&shouting).is_met_by(&capabilities));
    let wide = format!("  {demand}\t");
    assert_eq!(met, Demand::parse(&wide).is_met_by(&capabilities));
    let loud: Capabilities = pairs
        .map(|(name, value)| (name.to_ascii_uppercase(), value.to_ascii_uppercase()))
        .collect();
    assert_eq!(met, parsed.is_met_by(&loud));
    for (name, value) in capabilities.iter() {
        let one_word = !name.contains(char::is_whitespace) && !name.is_empty();
        if one_word && Demand::parse(name).name().is_some() {
            assert!(Demand::parse(name).is_met_by(&capabilities));
            let (equals, trimmed) = (format!("{name} -equals {value}"), value.trim());
            if trimmed == value && !value.is_empty() {
                assert!(Demand::parse(&equals).is_met_by(&capabilities));
            }
        }
    }
}

/// A prefix and, a line each, names of agents: a name is ours in one spelling only.
pub(crate) fn agent_names(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let mut lines = text.lines();
    let prefix = lines.next().unwrap_or_default();
    let pool = pool(prefix);
    let mut indexes = BTreeSet::new();
    let names: BTreeSet<&str> = lines.collect();
    for name in names {
        if let Some(index) = pool.index_of(name) {
            assert_eq!(name, format!("{prefix}{index}"));
            assert!(indexes.insert(index), "two names of one index");
        }
        if let Some(profile) = pool.placeholder_of(name) {
            let names = pool.placeholder_names(profile);
            assert!(names.iter().any(|known| known.eq_ignore_ascii_case(name)));
        }
        if let Ok(index) = name.parse::<u32>() {
            assert_eq!(pool.index_of(&format!("{prefix}{index}")), Some(index));
        }
    }
}

/// The wishes of a RunnerPool with these names of agents and placeholders.
fn pool(prefix: &str) -> Pool {
    Pool {
        name: "team/web".to_owned(),
        priority: 0,
        agent_prefix: prefix.to_owned(),
        placeholder_prefix: prefix.to_owned(),
        placeholder_suffix: ".mark".to_owned(),
        owner_mark: "cluster/namespace/web".to_owned(),
        max_agents: 10,
        ttl_idle: None,
        profiles: vec![Profile {
            name: "base".to_owned(),
            ..Profile::default()
        }],
        mode: planner::Mode::Active,
        placeholders: true,
        keep: planner::Keep::default(),
        deleting: false,
    }
}
