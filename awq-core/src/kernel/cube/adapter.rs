//! Whether the machine has a device for `wgpu`, which panics where there is none.

use burn::backend::wgpu::WgpuRuntime;
use burn::backend::wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_cubecl::cubecl::Runtime;

/// Whether there is an adapter of this system's graphics interface: Vulkan, Metal or DirectX 12. A software renderer counts.
pub fn has_wgpu_adapter() -> bool {
    !WgpuRuntime::enumerate_all_devices(&AutoGraphicsApi::backend()).is_empty()
}
