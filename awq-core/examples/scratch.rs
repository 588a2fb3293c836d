use burn::backend::Flex; use burn::tensor::{Tensor,Distribution}; use std::time::Instant;
use awq_core::backend::*; 
fn bench(name:&str, flop:f64, mut f: impl FnMut()) { f(); let mut best=f64::MAX; for _ in 0..6 { let t=Instant::now(); f(); best=best.min(t.elapsed().as_secs_f64()); } println!("{name}: {:.2} ms {:.1} GFLOP/s", best*1e3, flop/best/1e9); }
fn main(){
 let d=Default::default();
 for (m,k,n) in [(2048,576,1536),(2048,1536,576),(2048,576,576),(2048,2048,2048),(512,576,49152),(4096,576,1536)] {
  let a=Tensor::<Flex,2>::random([m,k],Distribution::Default,&d); let w=Tensor::<Flex,2>::random([n,k],Distribution::Default,&d);
  let fl=2.0*(m*k*n) as f64;
  bench(&format!("flex {m}x{k}x{n}"),fl,||{ let y=a.clone().matmul(w.clone().transpose()); std::hint::black_box(y); });
  let av=float_vec(a.clone()); let wv=float_vec(w.clone()); 
  let mut out=vec![0f32;m*n];
  bench(&format!("faer {m}x{k}x{n}"),fl,||{ 
    let o=faer::MatMut::from_row_major_slice_mut(&mut out,m,n);
    faer::linalg::matmul::matmul(o, faer::Accum::Replace, faer::MatRef::from_row_major_slice(&av,m,k), faer::MatRef::from_row_major_slice(&wv,n,k).transpose(), 1.0f32, faer::Par::rayon(0)); });
 }
 for (b,s) in [(1usize,2048usize),(4,512)] {
 let q=Tensor::<Flex,3>::random([b,s,576],Distribution::Default,&d); let k=Tensor::<Flex,3>::random([b,s,192],Distribution::Default,&d);
 let sh=AttentionShape{n_heads:9,n_kv_heads:3,head_dim:64};
 bench(&format!("attn {b}x{s}"), (b*9*s*s*64*2) as f64, ||{ std::hint::black_box(Flex::causal_attention(q.clone(),k.clone(),k.clone(),None,&sh)); });
 }
 let g=Tensor::<Flex,3>::random([1,2048,1536],Distribution::Default,&d);
 bench("swiglu",0.0,||{std::hint::black_box(Flex::swiglu(g.clone()+0.0,g.clone()+1.0));});
 bench("add",0.0,||{std::hint::black_box(g.clone()+1.0);});
 let x=Tensor::<Flex,3>::random([1,2048,576],Distribution::Default,&d); let wn=Tensor::<Flex,1>::random([576],Distribution::Default,&d);
 bench("rms",0.0,||{std::hint::black_box(Flex::rms_norm(x.clone(),wn.clone(),1e-5));});
 let l=Tensor::<Flex,2>::random([512,49152],Distribution::Default,&d); let t:Vec<u32>=(0..512).collect();
 bench("nll512",0.0,||{std::hint::black_box(Flex::token_nll(l.clone(),&t));});
 let w=Tensor::<Flex,2>::random([1536,576],Distribution::Default,&d);
 let grid=awq_core::grid::Grid{bits:awq_core::grid::Bits::new(3).unwrap(),granularity:awq_core::grid::Granularity::PerGroup(64.try_into().unwrap()),symmetry:awq_core::grid::Symmetry::Asymmetric,range_includes_zero:false,scale_dtype:awq_core::grid::ScaleDtype::F32};
 bench("fakequant 1536x576",0.0,||{std::hint::black_box(Flex::fake_quant(w.clone(),&grid));});
}
