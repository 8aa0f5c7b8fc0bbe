#![allow(warnings)]
use std::time::{Duration, Instant};
use burn::tensor::{*, ops::AttentionModuleOptions};
use burn::nn::*;
fn best(name: &str, mut f: impl FnMut()) {
    f();
    let mut b = Duration::MAX; 
    for _ in 0..15 { let t = Instant::now(); f(); b = b.min(t.elapsed()); }
    println!("{name}: {b:?}");
}
fn main() {
    let d = Device::flex();
    let r = |s: [usize; 2]| Tensor::<2>::random(s, Distribution::Normal(0.0, 1.0), &d);
    for rows in [1024usize, 2048] {
        println!("rows {rows}");
        let x = r([rows, 384]); let h = r([rows, 1536]);
        let w = r([384, 1536]); let wt = r([1536, 384]).transpose(); let w2 = r([384,384]); let w2t = r([384,384]).transpose(); let w3 = r([1536,384]); let w3t = r([384,1536]).transpose();
        let b = Tensor::<1>::random([1536], Distribution::Default, &d); let b3 = Tensor::<1>::random([384], Distribution::Default, &d);
        best("mm 384x1536", || { let _ = x.clone().matmul(w.clone()); });
        best("mm 384x1536 T", || { let _ = x.clone().matmul(wt.clone()); });
        best("mm 1536x384", || { let _ = h.clone().matmul(w3.clone()); });
        best("mm 1536x384 T", || { let _ = h.clone().matmul(w3t.clone()); });
        best("mm 384x384", || { let _ = x.clone().matmul(w2.clone()); });
        best("mm 384x384 T", || { let _ = x.clone().matmul(w2t.clone()); });
        best("linear 384x1536 T", || { let _ = module::linear(x.clone(), wt.clone(), Some(b.clone())); });
        best("linear 384x384 T", || { let _ = module::linear(x.clone(), w2t.clone(), Some(b3.clone())); });
        best("gelu", || { let _ = activation::gelu(h.clone()); });
        best("gelu tanh", || { let _ = h.clone().tanh(); });
        best("exp", || { let _ = h.clone().exp(); });
        best("add", || { let _ = x.clone() + x.clone(); });
        let ln = LayerNormConfig::new(384).init(&d);
        best("ln", || { let _ = ln.forward(x.clone()); });
        for s in [128usize, 512] {
            let bs = rows / s;
            let q = x.clone().reshape([bs, s, 12, 32]).swap_dims(1, 2);
            best(&format!("attention s{s}"), || { let _ = module::attention(q.clone(), q.clone(), q.clone(), None, None, Default::default()); });
            let m = Tensor::<4, Bool>::full([bs, 1, s, s], false, &d);
            best(&format!("attention mask s{s}"), || { let _ = module::attention(q.clone(), q.clone(), q.clone(), Some(m.clone()), None, Default::default()); });
            let a = Tensor::<4>::zeros([bs, 1, 1, s], &d);
            best(&format!("parts s{s}"), || { let sc = (q.clone() * 0.1).matmul(q.clone().swap_dims(2, 3)) + a.clone(); let _ = activation::softmax(sc, 3).matmul(q.clone()); });
            let sc = q.clone().matmul(q.clone().swap_dims(2, 3));
            best(&format!(" qk s{s}"), || { let _ = q.clone().matmul(q.clone().swap_dims(2, 3)); });
            best(&format!(" softmax s{s}"), || { let _ = activation::softmax(sc.clone(), 3); });
            best(&format!(" add s{s}"), || { let _ = sc.clone() + a.clone(); });
            best(&format!(" pv s{s}"), || { let _ = sc.clone().matmul(q.clone()); });
            best(&format!(" merge s{s}"), || { let _ = q.clone().mul_scalar(1.0).swap_dims(1,2).reshape([rows, 384]); });
        }
    }
}
