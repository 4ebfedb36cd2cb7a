//! `local status`: in minikube's words, for whoever's scripts read those.

use super::kubeconfig::{self, Owner};
use super::network;
use super::place::{Place, Settings};
use super::start::{agents, board_name, control_plane, url};
use crate::cli::client::Client;
use crate::cli::print;
use anyhow::Result;
use clap::ValueEnum;
use hyper::Method;
use nix::unistd::Uid;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// For an API server that does not answer.
const ANSWER: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs: an object, or a list where there are several boards.
    Json,
}

/// Of one board. The first has the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    name: String,
    host: &'static str,
    kubelet: &'static str,
    #[serde(rename = "APIServer")]
    api_server: &'static str,
    kubeconfig: &'static str,
    worker: bool,
}

const RUNNING: &str = "Running";
const STOPPED: &str = "Stopped";
const NONEXISTENT: &str = "Nonexistent";
const CONFIGURED: &str = "Configured";
const IRRELEVANT: &str = "Irrelevant";

/// Runs the command; its exit code says what does not run.
pub async fn run(place: &Place, output: Output) -> Result<ExitCode> {
    let statuses = match place.settings()? {
        Some(settings) => look(place, &settings).await?,
        None => vec![Status {
            name: board_name(1),
            host: NONEXISTENT,
            kubelet: NONEXISTENT,
            api_server: NONEXISTENT,
            kubeconfig: NONEXISTENT,
            worker: false,
        }],
    };
    match output {
        Output::Text => print(&statuses.iter().map(told).collect::<Vec<_>>().join("\n"))?,
        Output::Json => print(&match statuses.as_slice() {
            [only] => serde_json::to_string(only)? + "\n",
            all => serde_json::to_string(all)? + "\n",
        })?,
    }
    Ok(ExitCode::from(code(&statuses)))
}

async fn look(place: &Place, settings: &Settings) -> Result<Vec<Status>> {
    let serves = !control_plane(place)?.is_empty();
    let api_server = match serves {
        false => STOPPED,
        true if answers(place).await => RUNNING,
        true => "Error",
    };
    let leads = match &settings.kubeconfig {
        Some((path, uid)) => match Owner::of(Uid::from_raw(*uid)) {
            Ok(owner) => {
                kubeconfig::leads_to(&owner, path, &settings.context, &url(settings)).unwrap_or(false)
            }
            Err(_) => false,
        },
        None => false,
    };
    let mut statuses = Vec::new();
    for n in 1..=settings.boards {
        let kubelet = if agents(place, n)?.is_empty() { STOPPED } else { RUNNING };
        let host = match n {
            1 => network::has_bridge(place),
            _ => network::is_namespace(&place.netns(n)),
        };
        statuses.push(Status {
            name: board_name(n),
            host: if host { RUNNING } else { STOPPED },
            kubelet,
            api_server: if n == 1 { api_server } else { IRRELEVANT },
            kubeconfig: match (n, leads) {
                (1, true) => CONFIGURED,
                (1, false) => "Misconfigured",
                _ => IRRELEVANT,
            },
            worker: n > 1,
        });
    }
    Ok(statuses)
}

async fn answers(place: &Place) -> bool {
    let asked = async {
        let mut client = Client::connect(&place.control().join("admin.conf")).await?;
        client.ask(Method::GET, "/version", None).await
    };
    tokio::time::timeout(ANSWER, asked).await.is_ok_and(|answer| answer.is_ok())
}

/// Pure.
fn told(status: &Status) -> String {
    let Status { name, host, kubelet, api_server, kubeconfig, worker } = status;
    if *worker {
        format!("{name}\ntype: Worker\nhost: {host}\nkubelet: {kubelet}\n")
    } else {
        format!(
            "{name}\ntype: Control Plane\nhost: {host}\nkubelet: {kubelet}\napiserver: {api_server}\nkubeconfig: {kubeconfig}\n"
        )
    }
}

/// 1, 2 and 4, as minikube has them: a host, a part of the cluster, kubectl's way to it. Pure.
fn code(statuses: &[Status]) -> u8 {
    let mut code = 0;
    for status in statuses {
        if status.host != RUNNING {
            code |= 1;
        }
        if status.kubelet != RUNNING || ![RUNNING, IRRELEVANT].contains(&status.api_server) {
            code |= 2;
        }
        if ![CONFIGURED, IRRELEVANT].contains(&status.kubeconfig) {
            code |= 4;
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_sums_what_does_not_run() {
        let check = |fields: [&'static str; 4], worker: bool, expected: u8| {
            let [host, kubelet, api_server, kubeconfig] = fields;
            let status = Status { name: "b".into(), host, kubelet, api_server, kubeconfig, worker };
            assert_eq!(code(&[status]), expected, "{fields:?}");
        };
        check([RUNNING, RUNNING, RUNNING, CONFIGURED], false, 0);
        check([RUNNING, RUNNING, IRRELEVANT, IRRELEVANT], true, 0);
        check([RUNNING, STOPPED, RUNNING, CONFIGURED], false, 2);
        check([RUNNING, RUNNING, "Error", CONFIGURED], false, 2);
        check([STOPPED, STOPPED, STOPPED, CONFIGURED], false, 3);
        check([RUNNING, RUNNING, RUNNING, "Misconfigured"], false, 4);
        check([NONEXISTENT; 4], false, 7);
    }
}
