//! Certificates renewed while the daemon is killed: what lies on disk is whole, and what was begun is gone on with.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use hasup::sys::clock::wall_now;
use hasup::tls::store::TrustPaths;
use hasup::tls::{CertificateAuthority, NodeTrust};
use raft_tests::program::{alone, lacks_postgres, skip};

use crate::node::{Node, hostport, pause};

/// What the import may take until the files change.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn an_import_and_the_renewal_after_it_are_whole_wherever_the_daemon_is_killed() {
    let name = "an_import_and_the_renewal_after_it_are_whole_wherever_the_daemon_is_killed";
    if let Some(why) = lacks_postgres() {
        return skip(name, &why);
    }
    let _alone = alone();
    let mut node = Node::new(85);
    node.start(&[]);
    let cluster = node.json(&["status"])["cluster"]["id"].as_str().unwrap().to_owned();
    let paths = TrustPaths::below(&node.data_dir());
    let load = |node: &Node| NodeTrust::load(&node.data_dir()).unwrap();
    let (mut before, mut between, mut after) = (0, 0, 0);
    // while the import is on its way, and as soon as either file is another
    let moments = [(0, None), (10, None), (20, None), (40, None), (80, None)];
    let changes = [(LIMIT, Some(&paths.ca)), (LIMIT, Some(&paths.certificate))];
    let moments = moments.map(|(ms, file)| (Duration::from_millis(ms), file)).into_iter().chain(changes.repeat(3));
    for (within, file) in moments {
        let authority = CertificateAuthority::create(&cluster, wall_now()).unwrap();
        let bundle = node.folder.path().join("bundle");
        fs::write(&bundle, authority.export().as_bytes()).unwrap();
        let was = load(&node);
        let old = file.map(|file| fs::read(file).unwrap());
        let data_dir = node.data_dir().display().to_string();
        let run_dir = node.folder.path().join("r").display().to_string();
        let config = node.folder.path().join("node.toml").display().to_string();
        let place = ["--config", &config, "--data-dir", &data_dir, "--run-dir", &run_dir];
        let mut import = Command::new(raft_tests::program::hasup());
        import.args(["ca", "import", &bundle.display().to_string()]).args(place);
        import.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut import = import.spawn().unwrap();
        let began = Instant::now();
        while began.elapsed() < within && file.is_none_or(|file| Some(fs::read(file).unwrap()) == old) {
            std::hint::spin_loop();
        }
        node.kill_daemon();
        let _ = import.wait();
        let is = load(&node);
        let (has_authority, has_certificate) =
            (is.ca_certificates != was.ca_certificates, is.certificate != was.certificate);
        match (has_authority, has_certificate) {
            (false, false) => before += 1,
            (true, false) => between += 1,
            (true, true) => after += 1,
            (false, true) => panic!("a certificate came before its authority"),
        }
        assert!(
            was.ca_certificates.iter().all(|known| is.ca_certificates.contains(known)),
            "an authority is forgotten"
        );

        node.run();
        node.until("the node active again", |status| status["active_ready"] == true);
        let deadline = Instant::now() + LIMIT;
        while !load(&node).is_of_newest_authority().unwrap() {
            assert!(Instant::now() < deadline, "the renewal is not gone on with: {}", node.log());
            pause();
        }
        if has_authority {
            assert_eq!(load(&node).ca_certificates, is.ca_certificates);
        }
    }
    println!("kills: {before} before both files, {between} between them, {after} after");
    assert!(between + after > 0, "no kill came after a file had changed");
    // PostgreSQL outlived every daemon, and answers with the newest certificate
    let served = Command::new("openssl")
        .args(["s_client", "-starttls", "postgres", "-connect", &hostport(&node.host, node.ports[2])])
        .stdin(std::process::Stdio::null())
        .output();
    if served.is_err() {
        println!("SKIPPED the certificate that PostgreSQL serves: there is no openssl");
    }
    if let Ok(served) = served {
        let body: String = load(&node).certificate.lines().filter(|line| !line.starts_with("---")).take(4).collect();
        let served: String = String::from_utf8_lossy(&served.stdout).lines().collect();
        assert!(served.contains(&body), "PostgreSQL shows an older certificate: {served}");
    }
    assert!(!node.log().contains("panicked"), "{}", node.log());
}
