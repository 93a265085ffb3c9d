import { addIcon } from '@jupyterlab/ui-components';
import * as React from 'react';

import { IconButton, Progress } from '../parts';
import { CommandIDs } from '../tokens';
import type { IImage } from '../types';
import { size } from '../units';
import type { IViewParts } from './tree';

/** What machines can be made of: which images are there, which can be built, and how far that is. */
export function Images(props: IViewParts): React.ReactElement {
  const { images } = props.model;
  const built = images.filter(image => image.built).length;
  return (
    <details className="jp-vmlab-images">
      <summary>
        Images <span className="jp-vmlab-dim">{`${built} of ${images.length} built`}</span>
      </summary>
      <ul aria-label="Images">
        {images.map(image => (
          <ImageRow {...props} key={image.name} image={image} />
        ))}
      </ul>
    </details>
  );
}

function ImageRow({ image, model, commands }: IViewParts & { image: IImage }): React.ReactElement {
  const { name } = image;
  const [asked, setAsked] = React.useState(false);
  const job = model.job('image', name);
  const build = async (): Promise<void> => {
    setAsked(true);
    await commands.execute(CommandIDs.build, { image: name });
    setAsked(false);
  };
  return (
    <li data-image={name}>
      <div className="jp-vmlab-image-text" title={`${image.title}\n${image.description}`}>
        <div className="jp-vmlab-ellipsis">{name}</div>
        <div className="jp-vmlab-dim jp-vmlab-ellipsis">{stateOf(image)}</div>
        {(asked || job) && <Progress text={job?.text || 'Building …'} fraction={job?.fraction ?? null} />}
      </div>
      {image.built ? (
        <IconButton
          icon={addIcon}
          label={`New machine of ${name}`}
          onClick={() => void commands.execute(CommandIDs.create, { image: name })}
        />
      ) : (
        image.builtin && (
          <button
            type="button"
            className="jp-vmlab-text-button"
            aria-label={`Build the image ${name}`}
            aria-disabled={asked || job !== undefined}
            onClick={() => {
              if (!asked && !job) {
                void build();
              }
            }}
          >
            Build
          </button>
        )
      )}
    </li>
  );
}

function stateOf(image: IImage): string {
  if (!image.built) {
    return 'not built yet';
  }
  return `${size(image.size)}${image.ready ? ', starts in a moment' : ''}`;
}
