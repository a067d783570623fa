//! How clients connect: a string that names every node, and by which they notice when the one they talk to has died.

use std::time::Duration;

use super::Shared;
use super::handle::Dsn;
use crate::ha::record::MemberKind;
use crate::ha::timing::Timing;

impl Shared {
    /// Returns how clients connect, by the members and the lease of the present.
    pub(super) fn dsn(&self) -> Dsn {
        let state = self.state();
        let data = state.members.values().filter(|member| member.kind == MemberKind::Data);
        let hosts: Vec<String> =
            data.map(|member| format!("{}:{}", bracketed(&member.postgres_host), member.postgres_port)).collect();
        let ca_file = self.ca_file.display().to_string();
        // an adopted cluster has roles and databases of its own
        let is_adopted = self.postgres.postgres.layout().is_adopted();
        let (user, database) = if is_adopted { ("", "") } else { ("app", "app") };
        let at = if is_adopted { "" } else { "@" };
        Dsn {
            uri: format!(
                "postgresql://{user}{at}{}/{database}?target_session_attrs=read-write&connect_timeout=2&{}&sslmode=verify-ca&\
                 sslrootcert={ca_file}",
                hosts.join(","),
                noticing(Timing::from_options(&state.options).lease)
            ),
            user: user.to_owned(),
            database: database.to_owned(),
            password_file: (!is_adopted).then(|| self.password_file.display().to_string()),
            ca_file: Some(ca_file),
        }
    }
}

/// Returns the parameters by which a client notices that the machine it talks to has died. That says nothing, and by the system's own
/// limits the client would wait for its answer for a quarter of an hour, long after another node takes writes.
///
/// It gives up a second after the lease would have ended, when others take over: earlier, it would lose a connection that may go on.
/// While it has nothing to send, probes fill that time from its middle on, so that one that is lost is not the only one.
fn noticing(lease: Duration) -> String {
    let limit = lease + Duration::from_secs(1);
    let limit_s = limit.as_millis().div_ceil(1000);
    // at least 2: no lease is shorter than one second
    let idle_s = limit_s / 2;
    let count = limit_s - idle_s;
    let limit_ms = limit.as_millis();
    format!("tcp_user_timeout={limit_ms}&keepalives_idle={idle_s}&keepalives_interval=1&keepalives_count={count}")
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_notice_a_dead_machine_a_second_after_its_lease() {
        let cases = [
            (1000, "tcp_user_timeout=2000&keepalives_idle=1&keepalives_interval=1&keepalives_count=1"),
            (1500, "tcp_user_timeout=2500&keepalives_idle=1&keepalives_interval=1&keepalives_count=2"),
            (2000, "tcp_user_timeout=3000&keepalives_idle=1&keepalives_interval=1&keepalives_count=2"),
            (60_000, "tcp_user_timeout=61000&keepalives_idle=30&keepalives_interval=1&keepalives_count=31"),
        ];
        for (lease_ms, expected) in cases {
            assert_eq!(noticing(Duration::from_millis(lease_ms)), expected);
        }
    }
}
