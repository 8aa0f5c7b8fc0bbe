#![allow(warnings)]
use std::time::{Duration, Instant};
use burn::tensor::*;
fn main() {
    let d = Device::flex();
    let r = |s: [usize; 2]| Tensor::<2>::random(s, Distribution::Normal(0.0, 1.0), &d);
    for (rows, k, n) in [(1, 576, 1536), (2, 576, 1536), (4, 576, 1536), (8, 576, 1536), (16, 576, 1536), (32, 576, 1536), (64, 576, 1536), (128, 576, 1536), (256, 576, 1536), (1, 576, 49152), (8,576,49152)] {
        let x = r([rows, k]); let w = r([k, n]); let wt = r([n, k]).transpose();
        let mut b = [Duration::MAX; 2];
        for i in 0..60 { for (j, w) in [&w, &wt].into_iter().enumerate() { let t = Instant::now(); let _ = x.clone().matmul(w.clone()); b[j] = b[j].min(t.elapsed()); if k * n > 10_000_000 && i > 5 { break; } } }
        println!("{rows}x{k}x{n}: row {:?} transposed {:?}  {:.0} {:.0} GFLOP/s", b[0], b[1], 2e-9 * (rows*k*n) as f64 / b[0].as_secs_f64(), 2e-9 * (rows*k*n) as f64 / b[1].as_secs_f64());
    }

    let w = r([1536, 576]);
    let mut b = Duration::MAX;
    for _ in 0..20 { let t = Instant::now(); let x = w.clone().transpose(); let _ = x.clone().reshape([1, 576, 1536]); b = b.min(t.elapsed()); }
    println!("GFLOP transposing 1536x576 {b:?} {:.2} GB/s", 4e-9 * (1536.0*576.0) / b.as_secs_f64());
}
