//! Budgets that the kernel charges: told before a policy that has them, shown, acted on, given back.

use super::*;

const COUNTED: &str =
    "version: 1\nbudgets:\n  - {id: few, opens: 7, per: session, at_limit: deny-network}\n";

#[tokio::test]
async fn limits_are_in_the_kernel_before_a_policy_that_counts() {
    let bench = Bench::new();
    bench.write("p", COUNTED);
    bench.attach("a", "/one").await.unwrap();
    let calls = bench.kernel(|kernel| std::mem::take(&mut kernel.calls));
    assert_eq!(calls[..2], ["set_limits", "install"]);
    let limits = bench.kernel(|kernel| kernel.limits[&1]);
    assert_eq!((limits.count, limits.charges[0].limit), (1, 7));
    // Told once, until something changes.
    bench.engine.charge_all();
    assert!(bench.kernel(|kernel| kernel.calls.is_empty()));
    bench.engine.grant("a", "few", "3").unwrap();
    assert_eq!(
        bench.kernel(|kernel| kernel.limits[&1].charges[0].limit),
        10
    );
    // Limits that the kernel does not take leave the policy before in force.
    bench.write("p", &COUNTED.replace('7', "8"));
    bench.kernel(|kernel| kernel.fails = Some("set_limits"));
    assert!(bench.engine.swap("a", None).await.is_err());
    assert_eq!(bench.kernel(|kernel| kernel.tables[&1]), 1);
}

#[tokio::test]
async fn what_the_kernel_counted_is_shown_and_acted_on() {
    let bench = Bench::new();
    bench.write("p", COUNTED);
    bench.attach("a", "/one").await.unwrap();
    let charge = bench.kernel(|kernel| kernel.limits[&1].charges[0]);
    let count = |spent| {
        bench.kernel(|kernel| {
            let meter = Meter {
                epoch: charge.epoch,
                sum: spent,
                ..Meter::EMPTY
            };
            kernel.meters.insert(charge.meter, meter);
        });
    };
    count(3);
    let shown = bench.engine.budgets(Some("a")).unwrap();
    assert_eq!(
        (shown[0].budgets[0].spent, shown[0].budgets[0].left),
        (3, 4)
    );
    count(7);
    bench.engine.charge_all();
    bench.engine.charge_all();
    assert_eq!(bench.kernel(|kernel| kernel.limits[&1].count), 2);
    let told = bench.records();
    let told: Vec<_> = told.iter().filter(|it| it.op == op::BUDGET).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].rule.as_deref(), Some("few"));
    // Gone and come again, it begins anew: a session is another one.
    bench.engine.detach("a").await.unwrap();
    bench.attach("a", "/one").await.unwrap();
    let limits = bench.kernel(|kernel| kernel.limits.clone());
    let [again] = limits.values().collect::<Vec<_>>()[..] else {
        panic!("limits of one that is gone: {limits:?}");
    };
    let again = again.charges[0];
    assert!(again.epoch > charge.epoch && again.base == 0);
}

#[tokio::test]
async fn an_attach_that_fails_leaves_no_meter_taken() {
    let bench = Bench::new();
    bench.write("p", COUNTED);
    bench.kernel(|kernel| kernel.fails = Some("govern"));
    for _ in 0..3 {
        assert!(bench.attach("a", "/one").await.is_err());
    }
    bench.kernel(|kernel| kernel.fails = None);
    bench.attach("a", "/one").await.unwrap();
    let meters = bench.kernel(|kernel| {
        let limits = kernel.limits.values();
        limits.map(|it| it.charges[0].meter).collect::<Vec<_>>()
    });
    assert_eq!(meters, [0], "the first one is free");
}
