# A guest that needs from KVM what every 64-bit system needs, and nothing more: long mode with its own page tables, a
# task state segment, an exception and iretq, page-table switches, timer interrupts that end hlt, and user mode entered by
# sysretq and left by syscall. It prints a letter to the debug console (port 0xe9) for each of them that worked and
# ends QEMU through isa-debug-exit (port 0xf4, value 0x10, hence status 33).
#
# vmlab/hypervisor/accelerator.py carries the assembled bytes and runs them. After a change:
#     python -m vmlab.hypervisor.accelerator --assemble
#
# A multiboot image: loaded at 1 MiB, entered in 32-bit protected mode without paging.

.set PML4,      0x200000
.set IDT,       0x180000
.set STACK,     0x1f0000        # of the kernel
.set INT_STACK, 0x1e0000        # taken from the TSS when user mode is interrupted

.macro say letter
    movb    $\letter, %al
    outb    %al, $0xe9
.endm

.macro gate vector, handler     # an interrupt gate that user mode may use too
    movl    $\handler, %eax
    movw    %ax, IDT + 16 * \vector
    movw    $0x08, IDT + 16 * \vector + 2
    movw    $0xee00, IDT + 16 * \vector + 4
    shrl    $16, %eax
    movw    %ax, IDT + 16 * \vector + 6
.endm

.macro port number, value
    movb    $\value, %al
    outb    %al, $\number
.endm

.code32
.globl _start
_start:
    jmp     start32

.align 4
header:
    .long   0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000), header, _start, end, end, _start

start32:
    say     'A'
    cld
    movl    $PML4, %edi         # PML4, PDPT, PD: the first GiB in pages of 2 MiB
    xorl    %eax, %eax
    movl    $0x3000 / 4, %ecx
    rep stosl
    movl    $(PML4 + 0x1007), PML4
    movl    $(PML4 + 0x2007), PML4 + 0x1000
    movl    $(PML4 + 0x2000), %edi
    movl    $0x87, %eax
    movl    $512, %ecx
1:  movl    %eax, (%edi)
    addl    $0x200000, %eax
    addl    $8, %edi
    loop    1b
    movl    $IDT, %edi
    xorl    %eax, %eax
    movl    $4096 / 4, %ecx
    rep stosl
    gate    3, breakpoint       # every other exception finds no handler: a triple fault ends QEMU (-no-reboot)
    gate    0x20, timer
    movl    %cr4, %eax
    orl     $0x20, %eax         # PAE
    movl    %eax, %cr4
    movl    $PML4, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx   # EFER: long mode, syscall
    rdmsr
    orl     $0x101, %eax
    wrmsr
    movl    %cr0, %eax
    orl     $0x80000001, %eax
    movl    %eax, %cr0
    lgdt    gdtr
    ljmp    $0x08, $start64

.code64
start64:
    movw    $0x10, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movq    $STACK, %rsp
    movw    $0x28, %ax
    ltr     %ax
    lidt    idtr
    say     'B'                 # long mode

    int3
    say     'C'                 # an exception, and back

    movl    $1000, %ebp
2:  movq    %cr3, %rax
    movq    %rax, %cr3
    decl    %ebp
    jnz     2b
    say     'D'                 # 1000 switches of the page tables

    port    0x20, 0x11          # both interrupt controllers, vectors 0x20 and 0x28; only the timer is let through
    port    0xa0, 0x11
    port    0x21, 0x20
    port    0xa1, 0x28
    port    0x21, 4
    port    0xa1, 2
    port    0x21, 1
    port    0xa1, 1
    port    0x21, 0xfe
    port    0xa1, 0xff
    port    0x43, 0x34          # timer 0, 1000 a second
    port    0x40, 0xa9
    port    0x40, 0x04
    sti
3:  hlt
    cmpl    $20, ticks
    jb      3b
    say     'E'                 # 20 timer interrupts

    movl    $0xc0000081, %ecx   # STAR, LSTAR, FMASK
    xorl    %eax, %eax
    movl    $0x00130008, %edx
    wrmsr
    incl    %ecx
    movl    $entry, %eax
    xorl    %edx, %edx
    wrmsr
    movl    $0xc0000084, %ecx
    movl    $0x200, %eax
    wrmsr
    movl    $10000, %ebp
    movl    $user, %ecx
    movl    $0x202, %r11d
    sysretq
user:
    syscall
    jmp     user
entry:
    swapgs
    decl    %ebp
    jz      4f
    swapgs
    sysretq
4:  say     'F'                 # 10000 system calls
    port    0xf4, 0x10
5:  hlt
    jmp     5b

timer:
    pushq   %rax
    incl    ticks
    port    0x20, 0x20
    popq    %rax
breakpoint:
    iretq

.align 8
gdt:
    .quad   0
    .quad   0x00af9a000000ffff  # 08 kernel code
    .quad   0x00cf92000000ffff  # 10 kernel data
    .quad   0x00cff2000000ffff  # 18 user data
    .quad   0x00affa000000ffff  # 20 user code
    .word   0x67, tss - _start  # 28 the TSS, at 0x100000 + its offset
    .byte   0x10, 0x89, 0, 0
    .quad   0
gdtr:
    .word   . - gdt - 1
    .long   gdt, 0
idtr:
    .word   4095
    .quad   IDT
.align 4
ticks:
    .long   0
tss:
    .long   0
    .quad   INT_STACK
    .fill   23, 4, 0
end:
