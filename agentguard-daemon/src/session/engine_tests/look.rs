//! What wakes nobody is found by looking.

use super::*;
use crate::session::look::Look;

#[test]
fn what_wakes_nobody_is_found_once() {
    let kernel = Memory::default();
    let enforcer: Arc<Mutex<Box<dyn Enforcer>>> = Arc::new(Mutex::new(Box::new(kernel.clone())));
    let mut look = Look::new(&enforcer, [], Arc::default());
    // What was lost before is not known yet.
    assert_eq!(look.once(), Some(true));
    assert_eq!(look.once(), Some(false));
    kernel.0.lock().unwrap().lost = [0, 3];
    let held = enforcer.lock().unwrap();
    assert_eq!(look.once(), Some(false));
    drop(held);
    assert_eq!(look.once(), Some(true));
    assert_eq!(look.once(), Some(false));
    let asked = std::mem::take(&mut kernel.0.lock().unwrap().calls);
    assert_eq!(asked, ["tell-repeats"; 4]);
    drop(enforcer);
    assert_eq!(look.once(), None);
}
