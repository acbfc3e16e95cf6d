//! Asks Vulkan for devices and tries each, in a process that ends after it.
//!
//! **Invariant:** nothing is destroyed here, since the process ends and the kernel takes everything back. So
//! nothing can be used after it was destroyed, and no driver crashes in cleaning up.

use std::ffi::CStr;
use std::mem;

use ash::{Device, Entry, Instance, vk};

use super::{Candidate, GpuKind};

/// The version that is asked for: the first that names drivers. Devices may have an older one.
const VERSION: u32 = vk::API_VERSION_1_2;

/// What a device is to write, and how much of it.
const PATTERN: u32 = 0x5eed_1dea;
const PATTERN_BYTES: u64 = 64 << 10;

/// How long a device may take for that, in nanoseconds.
const WITHIN_NS: u64 = 5_000_000_000;

/// Why Vulkan, which is there, names no devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VulkanError {
    #[error("Vulkan's loader is too old: it has version 1.0")]
    Old,
    #[error("Vulkan: {step}: {result}")]
    Step { step: &'static str, result: vk::Result },
}

/// Names the step in which an operation failed.
fn step<T>(step: &'static str, result: Result<T, vk::Result>) -> Result<T, VulkanError> {
    result.map_err(|result| VulkanError::Step { step, result })
}

/// All devices, tried. None where there is no Vulkan, or no driver for it.
pub(crate) fn candidates() -> Result<Vec<Candidate>, VulkanError> {
    // SAFETY: loading a library runs its code. It is the system's own, from the system's places.
    let Ok(entry) = (unsafe { Entry::load() }) else { return Ok(Vec::new()) };
    let Some(instance) = instance(&entry)? else { return Ok(Vec::new()) };
    // SAFETY: the instance exists.
    let devices = step("listing devices", unsafe { instance.enumerate_physical_devices() })?;
    let candidates = devices.into_iter().map(|device| candidate(&instance, device)).collect();
    mem::forget(entry); // The library stays loaded until the process ends.
    Ok(candidates)
}

fn instance(entry: &Entry) -> Result<Option<Instance>, VulkanError> {
    // SAFETY: the library is loaded.
    let version = step("asking for its version", unsafe { entry.try_enumerate_instance_version() })?;
    if version.is_none_or(|version| version < vk::API_VERSION_1_1) {
        return Err(VulkanError::Old);
    }
    let application = vk::ApplicationInfo::default().api_version(VERSION);
    let wanted = vk::InstanceCreateInfo::default().application_info(&application);
    // SAFETY: what `wanted` points to outlives the call.
    match unsafe { entry.create_instance(&wanted, None) } {
        // This is how the loader says that it found no driver.
        Err(vk::Result::ERROR_INCOMPATIBLE_DRIVER) => Ok(None),
        created => step("creating an instance", created).map(Some),
    }
}

fn candidate(instance: &Instance, device: vk::PhysicalDevice) -> Candidate {
    // SAFETY: the device is one that the instance has named.
    let (properties, memory) = unsafe {
        (
            instance.get_physical_device_properties(device),
            instance.get_physical_device_memory_properties(device),
        )
    };
    let name = text(properties.device_name_as_c_str());
    // If the driver crashes in what follows, the parent reads at which device.
    eprintln!("trying {name}");
    let (driver, pci) = driver(instance, device, &properties);
    Candidate {
        name,
        driver,
        memory_bytes: own_memory_bytes(&memory),
        kind: match properties.device_type {
            vk::PhysicalDeviceType::DISCRETE_GPU => GpuKind::Discrete,
            vk::PhysicalDeviceType::INTEGRATED_GPU => GpuKind::Integrated,
            vk::PhysicalDeviceType::VIRTUAL_GPU => GpuKind::Virtual,
            vk::PhysicalDeviceType::CPU => GpuKind::Software,
            _ => GpuKind::Other,
        },
        pci,
        trial: try_out(instance, device, &memory).map_err(|e| e.to_string()),
    }
}

/// The largest heap and not the sum: some drivers list the part that the processor sees once more.
fn own_memory_bytes(memory: &vk::PhysicalDeviceMemoryProperties) -> u64 {
    let heaps = memory.memory_heaps_as_slice().iter();
    let own = heaps.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    own.map(|heap| heap.size).max().unwrap_or(0)
}

/// The driver with its version, and the place on the bus, as far as the device can tell.
fn driver(
    instance: &Instance,
    device: vk::PhysicalDevice,
    plain: &vk::PhysicalDeviceProperties,
) -> (String, Option<[u32; 4]>) {
    let unnamed = format!("vendor {:#06x}, version {:#x}", plain.vendor_id, plain.driver_version);
    if plain.api_version < vk::API_VERSION_1_1 {
        return (unnamed, None);
    }
    // SAFETY: the device is one that the instance has named.
    let extensions = unsafe { instance.enumerate_device_extension_properties(device) }.unwrap_or_default();
    let has = |name: &CStr| extensions.iter().any(|one| one.extension_name_as_c_str() == Ok(name));
    let has_driver = plain.api_version >= vk::API_VERSION_1_2 || has(ash::khr::driver_properties::NAME);
    let has_place = has(ash::ext::pci_bus_info::NAME);
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut place = vk::PhysicalDevicePCIBusInfoPropertiesEXT::default();
    let mut all = vk::PhysicalDeviceProperties2::default();
    if has_driver {
        all = all.push_next(&mut driver);
    }
    if has_place {
        all = all.push_next(&mut place);
    }
    // SAFETY: instance and device have version 1.1, and the device knows each structure in the chain.
    unsafe { instance.get_physical_device_properties2(device, &mut all) };
    let name = format!("{} {}", text(driver.driver_name_as_c_str()), text(driver.driver_info_as_c_str()));
    let pci = [place.pci_domain, place.pci_bus, place.pci_device, place.pci_function];
    (if name.trim().is_empty() { unnamed } else { name }, has_place.then_some(pci))
}

fn text<E>(bytes: Result<&CStr, E>) -> String {
    bytes.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Opens a device and lets it write a pattern into memory.
fn try_out(
    instance: &Instance,
    physical: vk::PhysicalDevice,
    memory: &vk::PhysicalDeviceMemoryProperties,
) -> Result<(), TrialError> {
    // SAFETY: the device is one that the instance has named.
    let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
    let computes = |family: &vk::QueueFamilyProperties| family.queue_flags.contains(vk::QueueFlags::COMPUTE);
    let family = families.iter().position(computes).ok_or(TrialError::NoCompute)? as u32;
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
    let wanted = vk::DeviceCreateInfo::default().queue_create_infos(&queues);
    // SAFETY: what `wanted` points to outlives the call, and the family exists.
    let device = unsafe { instance.create_device(physical, &wanted, None) }.map_err(at("opening it"))?;
    let (buffer, bytes) = buffer(&device, memory)?;
    fill(&device, family, buffer)?;
    // SAFETY: the memory has that many bytes, the processor may see it, and the device is done with it.
    let seen = unsafe {
        let start = device.map_memory(bytes, 0, PATTERN_BYTES, vk::MemoryMapFlags::empty());
        let start = start.map_err(at("looking at its memory"))?.cast::<u32>();
        std::slice::from_raw_parts(start, PATTERN_BYTES as usize / size_of::<u32>())
    };
    if seen.iter().all(|word| *word == PATTERN) { Ok(()) } else { Err(TrialError::Wrong) }
}

/// A buffer that the device can write and the processor can read.
fn buffer(
    device: &Device,
    memory: &vk::PhysicalDeviceMemoryProperties,
) -> Result<(vk::Buffer, vk::DeviceMemory), TrialError> {
    let wanted =
        vk::BufferCreateInfo::default().size(PATTERN_BYTES).usage(vk::BufferUsageFlags::TRANSFER_DST);
    // SAFETY: the device exists.
    let buffer = unsafe { device.create_buffer(&wanted, None) }.map_err(at("making a buffer"))?;
    // SAFETY: the buffer is the device's.
    let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
    let shared = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    let fits = |(index, kind): &(u32, &vk::MemoryType)| {
        needs.memory_type_bits >> index & 1 == 1 && kind.property_flags.contains(shared)
    };
    let kinds = (0..).zip(memory.memory_types_as_slice());
    let (index, _) = kinds.into_iter().find(fits).ok_or(TrialError::NoSharedMemory)?;
    let wanted = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(index);
    // SAFETY: the kind of memory exists.
    let bytes = unsafe { device.allocate_memory(&wanted, None) }.map_err(at("allocating memory"))?;
    // SAFETY: the memory is of a kind and a size that the buffer takes, and neither is bound to anything yet.
    unsafe { device.bind_buffer_memory(buffer, bytes, 0) }.map_err(at("binding memory"))?;
    Ok((buffer, bytes))
}

/// Has the device fill the buffer, and waits until it has.
fn fill(device: &Device, family: u32, buffer: vk::Buffer) -> Result<(), TrialError> {
    let pool = vk::CommandPoolCreateInfo::default().queue_family_index(family);
    let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
    let visible = vk::MemoryBarrier::default()
        .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
        .dst_access_mask(vk::AccessFlags::HOST_READ);
    // SAFETY: everything that is named here was made from this device and outlives the wait. The queue is used by
    // this thread alone, and commands are recorded between beginning and end.
    unsafe {
        let pool = device.create_command_pool(&pool, None).map_err(at("making commands"))?;
        let wanted = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        let commands = device.allocate_command_buffers(&wanted).map_err(at("making commands"))?;
        device.begin_command_buffer(commands[0], &once).map_err(at("making commands"))?;
        device.cmd_fill_buffer(commands[0], buffer, 0, PATTERN_BYTES, PATTERN);
        device.cmd_pipeline_barrier(
            commands[0],
            vk::PipelineStageFlags::TRANSFER,
            vk::PipelineStageFlags::HOST,
            vk::DependencyFlags::empty(),
            &[visible],
            &[],
            &[],
        );
        device.end_command_buffer(commands[0]).map_err(at("making commands"))?;
        let done =
            device.create_fence(&vk::FenceCreateInfo::default(), None).map_err(at("making a fence"))?;
        let submit = [vk::SubmitInfo::default().command_buffers(&commands)];
        device.queue_submit(device.get_device_queue(family, 0), &submit, done).map_err(at("submitting"))?;
        device.wait_for_fences(&[done], true, WITHIN_NS).map_err(at("waiting for it"))
    }
}

/// How a device failed its trial.
#[derive(Debug, thiserror::Error)]
enum TrialError {
    #[error("it has no queue for computing")]
    NoCompute,
    #[error("it shares no memory with the processor")]
    NoSharedMemory,
    #[error("{step}: {result}")]
    Step { step: &'static str, result: vk::Result },
    #[error("it wrote something else than it was to")]
    Wrong,
}

fn at(step: &'static str) -> impl FnOnce(vk::Result) -> TrialError {
    move |result| TrialError::Step { step, result }
}
