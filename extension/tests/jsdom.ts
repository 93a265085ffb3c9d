/** What JupyterLab and Lumino expect of a browser when they are loaded, and jsdom does not have. Import it first. */

class Observer {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
}

Object.assign(globalThis, {
  DragEvent: globalThis.DragEvent ?? class extends MouseEvent {},
  IntersectionObserver: globalThis.IntersectionObserver ?? Observer,
  ResizeObserver: globalThis.ResizeObserver ?? Observer,
  requestIdleCallback: (call: () => void) => setTimeout(call, 0)
});
window.matchMedia ??= query =>
  ({ media: query, matches: false, addEventListener: () => {}, removeEventListener: () => {} }) as never;
Element.prototype.scrollIntoView ??= () => {};
URL.createObjectURL ??= () => 'blob:picture';
URL.revokeObjectURL ??= () => {};
