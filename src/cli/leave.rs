//! `hasup leave`: this machine's node is taken out of the cluster and stops; the active one hands its role over first.
//!
//! The other members are asked, not this node: once it is out, nobody answers it any more, and it could not tell whether it is.

use std::process::ExitCode;

use serde_json::json;

use super::args::{Cli, NodeFlags};
use super::local::{self, Local};
use super::show::Out;
use super::{CliError, here, systemd};
use crate::config::Address;
use crate::http::client::{Client, Target};
use crate::node::error::HandleError;
use crate::node::handle::Request;
use crate::node::status::Status;

pub(super) async fn run(cli: &Cli, out: Out) -> Result<ExitCode, CliError> {
    if !cli.reach.target.is_empty() {
        let text = "leave takes out this machine's node alone. Nothing was done. Leave --target and HASUP_TARGET out, or say \
                    `hasup nodes remove NODE`";
        return Err(CliError::Usage(text.to_owned()));
    }
    let config = Local::load(&cli.reach, &NodeFlags::default())?.config;
    // this machine's own daemon or nobody: another member's word would take that one out
    let own = Client::new(vec![Target::Admin(config.admin_socket())], None, None).map_err(anyhow::Error::new)?;
    let status = match own.status().await {
        Ok(status) => status,
        Err(error) => {
            let why = here::why_silent(cli, &config.admin_socket()).await.unwrap_or(error.message);
            return Err(CliError::Refused(format!(
                "{why}. So the node cannot leave in order, and nothing was done. A node that is not to be started again is taken out by \
                 `hasup nodes remove NODE` on another machine"
            )));
        }
    };
    require_known(&status)?;
    let name = status.me.clone();
    let others = status.nodes.iter().filter(|node| node.name != name);
    let targets: Vec<Target> =
        others.filter_map(|node| Address::parse(&node.api_address, 7401).ok()).map(Target::Tcp).collect();
    if targets.is_empty() {
        let text = format!("{name} is the only node of its cluster. Nothing was done. End it all by `hasup destroy`");
        return Err(CliError::Refused(text));
    }
    let others = local::client_of(&cli.reach, &config.data_dir, targets)?;
    if status.active.as_ref() == Some(&name) {
        others.request(&Request::Switchover { to: None }).await.map_err(|error| not_left(&name, error))?;
    }
    others.request(&Request::NodesRemove { name: name.clone() }).await.map_err(|error| not_left(&name, error))?;
    if systemd::runs(&config.data_dir) {
        systemd::retire()?;
    } else {
        own.request(&Request::Shutdown { handover: true }).await?;
    }
    let text = format!(
        "{name} is no member any more, and has stopped. What it held is still in {}; `hasup destroy` deletes it",
        config.data_dir.display()
    );
    out.answer(&json!({"node": name, "left": true, "data_dir": config.data_dir}), &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses where the members may know somebody else by this node's name: they would take that one out.
fn require_known(status: &Status) -> Result<(), CliError> {
    let name = &status.me;
    if let Some(told) = &status.not_a_member {
        return Err(CliError::Refused(format!("There is nothing to leave, and nothing was done. {told}")));
    }
    if status.is_elsewhere {
        return Err(CliError::Refused(format!(
            "The members do not know yet where {name} is now, so it may be the copy of a machine that goes on as {name}, which would be \
             taken out. Nothing was done. Try again in a minute: by then they know, or `hasup status` here says whose copy this is"
        )));
    }
    Ok(())
}

/// Says that a step on the way out went wrong, and that the command may be repeated.
fn not_left(name: &str, error: HandleError) -> HandleError {
    HandleError { message: format!("{}. {name} has not left; `hasup leave` may be repeated", error.message), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_the_members_know_elsewhere_or_not_at_all_does_not_leave_and_is_told_what_to_do() {
        let refusal = |status: &Status| match require_known(status) {
            Err(CliError::Refused(told)) => told,
            other => panic!("not refused: {other:?}"),
        };
        let mut status = Status::starting("n2");
        assert!(require_known(&status).is_ok());
        status.is_elsewhere = true;
        let told = refusal(&status);
        assert!(told.contains("do not know yet where n2 is now") && told.contains("Nothing was done"), "{told}");
        assert!(told.contains("Try again in a minute") && told.contains("`hasup status` here"), "{told}");
        // whose copy it is says more
        status.not_a_member = Some("Two machines run as n2".to_owned());
        let told = refusal(&status);
        assert!(told.contains("nothing was done") && told.ends_with("Two machines run as n2"), "{told}");
    }
}
