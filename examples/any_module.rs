//! Any Burn module can be adapted: Burn's own hook carries the adapter, so even `Linear::forward` sees it.
//!
//!     cargo run --release -p peft-examples --example any_module

use burn::{
    module::Module,
    nn::{Linear, LinearConfig, Relu},
    tensor::{Device, Distribution, Tensor},
};
use peft::{BaseModel, Forward, Inputs, ModelInfo, Outputs, PeftConfig, PeftModel, PeftType, Result};

/// A module of one's own that knows nothing of adapters.
#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

impl Forward for Mlp {
    fn forward(&self, inputs: &Inputs) -> Outputs {
        let x = inputs.inputs_embeds.clone().expect("this model reads inputs_embeds");
        Outputs::new().with("y", self.down.forward(Relu::new().forward(self.up.forward(x))))
    }
}

fn main() -> Result<()> {
    let device = Device::flex();
    // From here on ten lines.
    let mlp = Mlp { up: LinearConfig::new(8, 16).init(&device), down: LinearConfig::new(16, 2).init(&device) };
    let base = BaseModel::new(Box::new(mlp), ModelInfo::custom());
    let config = PeftConfig::new(PeftType::LORA, None)?.with("target_modules", vec!["up"])?;
    let mut model = PeftModel::new(base, config, &device, 0)?;
    let x = Tensor::random([1, 4, 8], Distribution::Default, &device);
    let inputs = model.check(Inputs { inputs_embeds: Some(x), ..Inputs::default() })?.inputs;
    let loss = model.forward(&inputs)?.get::<3>("y")?.square().mean();
    let gradients = model.gradients(&loss);
    model.step(&mut burn::optim::AdamWConfig::new().init(), 1e-2, gradients);
    let merged = model.merge()?;

    println!("{}", model.explanation()?.trainable_sentence());
    let adapted = model.forward(&inputs)?.get::<3>("y")?.to_data();
    let folded = merged.running().forward(&inputs)?.get::<3>("y")?.to_data();
    adapted.assert_approx_eq::<f32>(&folded, burn::tensor::Tolerance::default());
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
