import { defineConfig } from 'vitest/config';

export default defineConfig({
  // JupyterLab's packages import pictures, which only a bundler knows how to read.
  test: { server: { deps: { inline: [/@jupyterlab/, /@jupyter\//] } } }
});
