use std::net::Ipv4Addr;

use super::*;
use std::collections::HashSet;

use proptest::prelude::*;

fn backend(address: &str, port: u16) -> overlane_api::Backend {
    overlane_api::Backend {
        address: address.parse().unwrap(),
        port,
        weight: 1,
        local: false,
        use_cluster: true,
        use_local: false,
        serving: true,
        state: overlane_api::BackendState::Ready,
    }
}

#[test]
fn a_frontend_is_read_back_as_written() {
    for kind in [
        FrontendKind::ClusterIp,
        FrontendKind::NodePort,
        FrontendKind::LoadBalancer,
        FrontendKind::ExternalIp,
    ] {
        for service in [0, 1, 77, (1 << 16) - 1] {
            let frontend = FrontendRef { service, kind };
            assert_ne!(frontend.to_bits(), 0);
            assert_eq!(FrontendRef::from_bits(frontend.to_bits()), Some(frontend));
        }
    }
    assert_eq!(FrontendRef::from_bits(0), None);
}

#[test]
fn each_family_has_its_own_backends() {
    let all = [backend("10.244.1.10", 8080), backend("fd12::10", 8080)];
    let v4 = Backends::<u32>::new(&all, Algorithm::Maglev);
    let v6 = Backends::<u128>::new(&all, Algorithm::Maglev);
    assert_eq!((v4.list().len(), v6.list().len()), (1, 1));
    assert_eq!(v4.choose(Scope::Cluster, 7).unwrap().address, 0x0af4_010a);
    assert_eq!(v6.choose(Scope::Cluster, 7).unwrap().address, 0xfd12_u128 << 112 | 0x10);
    assert!(v4.choose(Scope::Local, 7).is_none() && v4.has_any());
    let only_v6 = Backends::<u32>::new(&all[1..], Algorithm::Maglev);
    assert!(only_v6.choose(Scope::Cluster, 7).is_none() && !only_v6.has_any());
}

#[test]
fn a_draining_backend_takes_nothing_but_counts() {
    let mut draining = backend("10.244.1.10", 80);
    draining.weight = 0;
    for algorithm in [Algorithm::Maglev, Algorithm::Random] {
        let backends = Backends::<u32>::new(&[draining], algorithm);
        assert!(backends.choose(Scope::Cluster, 0).is_none() && backends.has_any());
        assert!(backends.find(0x0af4_010a, 80).unwrap().is_serving());
        assert!(backends.find(0x0af4_010a, 81).is_none());
    }
}

#[test]
fn a_service_is_one_cache_line() {
    assert_eq!(size_of::<Option<ServiceEntry>>(), 64);
    assert_eq!(align_of::<ServiceEntry>(), 64);
}

#[test]
fn source_ranges_are_for_load_balancers_and_one_family() {
    let ranges = ["203.0.113.0/24".parse().unwrap()];
    let none = Shared::new(Backends::default()).into();
    let entry = ServiceEntry {
        generation: 1,
        life: 0,
        protocol: 6,
        internal: Scope::Local,
        external: Scope::Local,
        reject: Reject::Rst,
        forwarding: Forwarding::Snat,
        algorithm: Algorithm::Maglev,
        affinity_seconds: 0,
        sources: Some(Arc::new(Spaces::union(&ranges))),
        v4: Shared::new(Backends::default()).into(),
        v6: none,
    };
    let admits = |kind, source: &str| entry.admits(kind, source.parse().unwrap());
    assert!(admits(FrontendKind::LoadBalancer, "203.0.113.9"));
    assert!(!admits(FrontendKind::LoadBalancer, "203.0.114.9"));
    assert!(!admits(FrontendKind::LoadBalancer, "2001:db8::1"));
    assert!(admits(FrontendKind::NodePort, "203.0.114.9"));
    assert!(admits(FrontendKind::ExternalIp, "203.0.114.9"));
    let everybody = ServiceEntry { sources: None, ..entry.clone() };
    assert!(everybody.admits(FrontendKind::LoadBalancer, "2001:db8::1".parse().unwrap()));
    assert_eq!(entry.scope(FrontendKind::ClusterIp, true), Scope::Local);
    assert_eq!(entry.scope(FrontendKind::NodePort, false), Scope::Local);
    assert_eq!(entry.scope(FrontendKind::LoadBalancer, true), Scope::Cluster);
}

fn backends() -> impl Strategy<Value = Vec<overlane_api::Backend>> {
    let flags = prop::bits::u8::between(0, 4);
    prop::collection::btree_map((any::<bool>(), 0_u8..40, 1_u16..4), (flags, 0_u16..4), 0..40)
        .prop_map(|all| {
            let one = |((v4, host, port), (flags, weight)): ((bool, u8, u16), (u8, u16))| {
                let address = if v4 {
                    Ipv4Addr::from_bits(0x0af4_0000 + u32::from(host)).into()
                } else {
                    std::net::Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(host)).into()
                };
                overlane_api::Backend {
                    address,
                    port,
                    weight,
                    local: flags & 1 != 0,
                    use_cluster: flags & 2 != 0,
                    use_local: flags & 4 != 0,
                    serving: flags & 8 != 0,
                    state: overlane_api::BackendState::Ready,
                }
            };
            all.into_iter().map(one).collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn all_usable_backends_are_chosen_and_no_others(
        all in backends(), maglev: bool, local: bool
    ) {
        let algorithm = if maglev { Algorithm::Maglev } else { Algorithm::Random };
        let scope = if local { Scope::Local } else { Scope::Cluster };
        let usable = |b: &&overlane_api::Backend| {
            b.weight > 0 && if local { b.use_local } else { b.use_cluster }
        };
        let backends = Backends::<u32>::new(&all, algorithm);
        let expected: HashSet<(IpAddr, u16)> =
            all.iter().filter(usable).filter(|b| b.address.is_ipv4()).map(|b| (b.address, b.port)).collect();
        // More hashes than there are backends times their weights, evenly apart.
        let chosen: HashSet<(IpAddr, u16)> = (0..4096_u32)
            .filter_map(|n| backends.choose(scope, n << 20))
            .map(|b| (Ipv4Addr::from_bits(b.address).into(), b.port))
            .collect();
        prop_assert_eq!(chosen, expected);
        let spread = Spread::from(Shared::new(backends.clone()));
        for hash in (0..4096_u32).map(|n| n << 20 | n) {
            prop_assert_eq!(spread.choose(scope, hash), backends.choose(scope, hash));
        }
        let v4 = all.iter().filter(|b| b.address.is_ipv4());
        prop_assert_eq!(backends.has_any(), v4.clone().any(|b| b.use_cluster || b.use_local));
        for backend in v4 {
            let address = u32::of(backend.address).unwrap();
            let found = backends.find(address, backend.port).unwrap();
            prop_assert_eq!(found.is_serving(), backend.serving);
            prop_assert_eq!(found.is_local(), backend.local);
        }
    }

    #[test]
    fn weights_are_shares(weights in prop::collection::vec(0_u16..50, 1..20)) {
        let all: Vec<overlane_api::Backend> = (1_u16..)
            .zip(&weights)
            .map(|(port, weight)| overlane_api::Backend {
                weight: *weight,
                ..backend("10.244.1.10", port)
            })
            .collect();
        let total: u32 = weights.iter().map(|w| u32::from(*w)).sum();
        let backends = Backends::<u32>::new(&all, Algorithm::Random);
        let mut counts = vec![0_u32; weights.len() + 1];
        for hash in 0..(1_u32 << 16) {
            if let Some(backend) = backends.choose(Scope::Cluster, hash << 16) {
                counts[usize::from(backend.port)] += 1;
            }
        }
        for (count, weight) in counts[1..].iter().zip(&weights) {
            let share = f64::from(1 << 16) * f64::from(*weight) / f64::from(total.max(1));
            prop_assert!((f64::from(*count) - share).abs() <= 2.0, "{} for {}", count, share);
        }
    }

    /// The order in which backends are told does not matter.
    #[test]
    fn the_same_backends_make_the_same_table(all in backends(), maglev: bool) {
        let algorithm = if maglev { Algorithm::Maglev } else { Algorithm::Random };
        let mut reversed = all.clone();
        reversed.reverse();
        prop_assert!(
            Backends::<u128>::new(&all, algorithm) == Backends::<u128>::new(&reversed, algorithm)
        );
    }
}
