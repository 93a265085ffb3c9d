import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILabShell, ILayoutRestorer } from '@jupyterlab/application';
import { IThemeManager, WidgetTracker } from '@jupyterlab/apputils';
import type { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { IComparison } from '../lab/api';
import type { LabModel } from '../lab/model';
import { ILabModel } from '../lab/token';
import { CommandIDs } from '../tokens';
import { subjectOf } from './comparison';
import { ComparisonTab } from './tab';

/** The tabs that show what differs between two states. */
export const comparisonsPlugin: JupyterFrontEndPlugin<void> = {
  id: 'vmlab:comparisons',
  description: 'What differs between two states of machines, in tabs.',
  autoStart: true,
  requires: [ILabModel],
  optional: [ILabShell, ILayoutRestorer, IThemeManager],
  activate: (
    app: JupyterFrontEnd,
    model: LabModel,
    labShell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    themes: IThemeManager | null
  ): void => {
    const tracker = new WidgetTracker<ComparisonTab>({
      namespace: 'vmlab-comparisons'
    });
    const newTab = (comparison: IComparison, inside: boolean): ComparisonTab => {
      const tab = new ComparisonTab({ model, themes }, comparison, inside);
      tab.content.changed.connect(() => void tracker.save(tab));
      void tracker.add(tab);
      return tab;
    };
    const open = (comparison: IComparison, inside?: boolean): void => {
      const subject = subjectOf(comparison);

      const known = tracker.find(other => subjectOf(other.comparison) === subject);
      if (known && inside !== undefined && inside !== known.content.inside) {
        known.content.inside = inside;
      } else {
        // Who asks again wants to know how it is now.
        known?.content.refresh();
      }
      // eslint-disable-next-line jupyter/require-disposable-transfer -- likewise
      const tab = known ?? newTab(comparison, inside ?? false);
      if (!tab.isAttached) {
        // A page of Notebook 7 has one document in its main area, and room below it.
        app.shell.add(tab, labShell ? 'main' : 'down', { type: 'Virtual machine' });
      }
      app.shell.activateById(tab.id);
    };

    app.commands.addCommand(CommandIDs.openComparison, {
      label: 'Compare Two States',
      describedBy: {
        args: {
          type: 'object',
          required: ['before', 'after'],
          properties: {
            before: {
              type: 'string',
              description: 'A machine as it is now (web), or a snapshot (web@clean)'
            },
            after: { type: 'string', description: 'Likewise' },
            inside: { type: 'boolean', description: 'Whether what is inside is compared as well' }
          }
        }
      },
      execute: ({ before, after, inside }: ReadonlyPartialJSONObject) => {
        if (typeof before === 'string' && typeof after === 'string') {
          open({ before, after }, typeof inside === 'boolean' ? inside : undefined);
        }
      }
    });
    void restorer?.restore(tracker, {
      command: CommandIDs.openComparison,
      args: ({ comparison, content }) => ({ ...comparison, inside: content.inside }),
      name: ({ comparison }) => subjectOf(comparison)
    });
  }
};
