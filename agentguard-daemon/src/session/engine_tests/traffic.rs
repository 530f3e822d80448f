//! What was counted for an agent goes into the log, and only then is forgotten.

use super::*;

/// So many bytes to a port of one address.
fn counted(who: Membership, port: u16, bytes_out: u64) -> Counted {
    Counted {
        who,
        flow: Some(Flow {
            agent: who.agent,
            session: who.session,
            address: std::net::Ipv4Addr::new(192, 0, 2, 1)
                .to_ipv6_mapped()
                .octets(),
            port,
            protocol: 17,
        }),
        name: (port == 443).then(|| "a.test".into()),
        counts: Counts {
            bytes_out,
            packets_out: 1,
            ..Counts::default()
        },
    }
}

#[tokio::test]
async fn traffic_is_forgotten_when_it_is_in_the_log() {
    let mut bench = Bench::new();
    bench.attach("a", "/one").await.unwrap();
    bench.attach("b", "/two").await.unwrap();
    let who = |slot| Membership {
        agent: slot,
        session: slot,
    };
    bench.kernel(|kernel| {
        kernel.traffic = vec![
            counted(who(1), 53, 100),
            counted(who(1), 443, 5_000),
            counted(who(2), 80, 7),
            counted(who(9), 22, 1),
        ];
    });
    let asked = bench.engine.traffic(None).unwrap();
    let sums: Vec<_> = asked.iter().map(|it| it.amounts.bytes_out).collect();
    assert_eq!(sums, [5_100, 7]);
    assert_eq!(asked[0].destinations[0].port, Some(443));
    assert_eq!(bench.engine.traffic(Some("b")).unwrap().len(), 1);
    assert!(bench.engine.traffic(Some("c")).is_err());
    bench.engine.detach("a").await.unwrap();
    let traffic = |bench: &Bench| -> Vec<(Option<String>, Option<u32>, Option<u64>)> {
        let records = bench.records().into_iter();
        records
            .filter(|record| record.op == "traffic")
            .map(|it| (it.agent.map(Into::into), it.session, it.bytes_out))
            .collect()
    };
    let own = |name: &str, session, bytes| (Some(name.to_owned()), Some(session), Some(bytes));
    assert_eq!(traffic(&bench), [own("a", 1, 5_000), own("a", 1, 100)]);
    assert_eq!(bench.ops().last().map(String::as_str), Some("agent-detach"));
    assert_eq!(bench.kernel(|kernel| kernel.traffic.len()), 2);
    // The next one finds what nobody owns, and an agent whose cgroup has gone; others go on.
    std::fs::remove_dir_all(bench.folder.path().join("cg/two")).unwrap();
    bench.die();
    bench.restore().unwrap();
    let found = traffic(&bench);
    assert_eq!(found[2..], [own("b", 2, 7), (None, Some(9), Some(1))]);
    assert!(bench.kernel(|kernel| kernel.traffic.is_empty()));
}
