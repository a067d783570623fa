//! Which settings of PostgreSQL are hasup's alone.

/// Settings that nobody else may change: with another value of these, a promise of hasup does not hold.
const OWNED: &[&str] = &[
    "archive_cleanup_command",
    "archive_mode",
    "config_file",
    "data_directory",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "lc_messages",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "max_replication_slots",
    "max_wal_senders",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_timeline",
    "restart_after_crash",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
    "wal_retrieve_retry_interval",
];

/// Tells whether the setting of PostgreSQL called `name` is hasup's own, in whatever case it is written.
pub fn is_owned(name: &str) -> bool {
    OWNED.contains(&name.to_ascii_lowercase().as_str())
}
