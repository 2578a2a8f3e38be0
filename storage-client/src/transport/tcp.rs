//! From a host's name to a TCP connection: its addresses, tried one after the other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::endpoint::Endpoint;
use super::failure::within;
use crate::sync::deadline_after;

/// Whether a host is this machine by its name (RFC 6761, section 6.3). Such a name is not looked up: a machine without
/// /etc/hosts, as a minimal container is, would ask a name server for it, which may not answer or answer anything.
fn is_localhost(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next();
    last.is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// The addresses of a host, in the order in which they are tried.
async fn look_up(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    if is_localhost(host) {
        return Ok(vec![
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]);
    }
    let lookup = tokio::net::lookup_host((host, port));
    let found = within(deadline, "the look-up of the host", lookup).await?;
    match found {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(format!("the host {host:?} cannot be resolved: {error}")),
    }
}

/// So many addresses of a host have their failures told; a name server may give hundreds.
const FAILURES_TOLD_MAX: usize = 4;

/// Failures as one text: the first ones and the last.
fn told(mut failures: Vec<String>) -> String {
    if failures.len() > FAILURES_TOLD_MAX {
        let last = failures.len() - 1;
        let left_out = failures.drain(FAILURES_TOLD_MAX - 1..last).count();
        failures.push(format!("{left_out} more failed in between"));
    }
    failures.join("; ")
}

pub(super) async fn connect_tcp(
    endpoint: &Endpoint,
    deadline: Instant,
) -> Result<TcpStream, String> {
    let Endpoint { host, port, .. } = endpoint;
    let addresses = look_up(host, *port, deadline).await?;
    // Each is told: the first may be the one that was meant, and the last the only one that answers.
    let mut failures = Vec::new();
    for (tried, address) in addresses.iter().enumerate() {
        // Each address gets its share of the time that is left, so that one that swallows packets does not
        // keep us from the next.
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline_after(now, deadline.saturating_duration_since(now) / left);
        match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                tcp.set_nodelay(true)
                    .map_err(|error| format!("TCP_NODELAY cannot be set: {error}"))?;
                return Ok(tcp);
            }
            Ok(Err(error)) => failures.push(format!("{address} cannot be reached: {error}")),
            Err(_) => failures.push(format!("{address} did not answer in time")),
        }
    }
    if failures.is_empty() {
        return Err(format!("the host {host:?} has no address"));
    }
    Err(told(failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_a_name_of_its_own_and_what_is_below_it() {
        for host in [
            "localhost",
            "LocalHost",
            "localhost.",
            "db.localhost",
            "a.b.localhost.",
        ] {
            assert!(is_localhost(host), "{host}");
        }
        for host in [
            "notlocalhost",
            "localhost.example.com",
            "localhost..",
            ".",
            "",
            "127.0.0.1",
        ] {
            assert!(!is_localhost(host), "{host}");
        }
    }

    #[test]
    fn the_failures_of_few_addresses_are_told_and_of_many_the_first_and_the_last() {
        let failures = |count: usize| (1..=count).map(|n| n.to_string()).collect();
        assert_eq!(told(failures(1)), "1");
        assert_eq!(told(failures(4)), "1; 2; 3; 4");
        assert_eq!(told(failures(9)), "1; 2; 3; 9; 5 more failed in between");
    }
}
