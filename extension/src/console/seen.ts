/** Whether somebody can see an element: it is in the viewport of a page that is shown. */

/** An element that is out of sight for less than this is being scrolled past. */
const LINGER_MS = 3000;

/** Call `changed` when it becomes visible (at once) and when it has been hidden for some seconds. */
export function watchSeen(element: HTMLElement, changed: (seen: boolean) => void): () => void {
  let inView = true;
  let seen = true;
  let timer: ReturnType<typeof setTimeout> | undefined;

  function update(): void {
    const now = inView && document.visibilityState === 'visible';
    clearTimeout(timer);
    if (now === seen) {
      return;
    }
    if (now) {
      seen = true;
      changed(true);
    } else {
      timer = setTimeout(() => {
        seen = false;
        changed(false);
      }, LINGER_MS);
    }
  }

  const observer = new IntersectionObserver(entries => {
    inView = entries[entries.length - 1]?.isIntersecting ?? inView;
    update();
  });
  observer.observe(element);
  document.addEventListener('visibilitychange', update);
  return () => {
    clearTimeout(timer);
    observer.disconnect();
    document.removeEventListener('visibilitychange', update);
  };
}
